//! What the derive and `#[actions]` refuse, and in which words.

#[test]
fn wrong_resources_do_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/resource_*.rs");
    cases.compile_fail("tests/ui/actions_*.rs");
}
