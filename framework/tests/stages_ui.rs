//! What `#[stages]` refuses, and in which words.

#[test]
fn refusals() {
    trybuild::TestCases::new().compile_fail("tests/ui/stages_*.rs");
}
