//! Makes every file in `src/types` a module, so that a resource type is one
//! file and nothing else needs to be touched. See docs/add-a-resource.md.

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src/types");
    println!("cargo:rerun-if-changed={}", folder.display());
    println!("cargo:rerun-if-changed=../../migrations/site");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("src/types is there")
        .filter_map(|entry| {
            entry.ok()?.file_name().into_string().ok()?.strip_suffix(".rs").map(str::to_owned)
        })
        .collect();
    names.sort();
    let mut modules = String::new();
    for name in names {
        let path = folder.join(format!("{name}.rs"));
        writeln!(modules, "#[path = {:?}]\nmod {name};", path.display().to_string())
            .expect("a String takes all");
    }
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    std::fs::write(Path::new(&out).join("types.rs"), modules).expect("cargo's folder is writable");
}
