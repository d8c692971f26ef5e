//! Frameworks and engines of others: for readers of the report, who know these and want to know
//! where Podyard stands. All are installed from their registries into one folder, once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Result, rest::Contender};

/// The servers of the same table in another language. They have no bars.
pub fn contenders(folder: &Path) -> Result<Vec<Contender>> {
    let python = folder.join("bin/python");
    if !folder.join("bin/gunicorn").is_file() {
        eprintln!("installing the peers into {}", folder.display());
        venv(folder, &["-r".into(), own("requirements.txt").display().to_string()])?;
    }
    // Absolute, since the servers do not start where this was called.
    let python = std::path::absolute(python)?;
    let peer = |name: &str, file: &str| Contender {
        name: name.to_owned(),
        command: format!("{} {} {{listen}} {{database}}", python.display(), own(file).display()),
        headers: Vec::new(),
    };
    Ok(vec![peer("FastAPI", "fastapi_peer.py"), peer("DRF", "drf_peer.py")])
}

/// How a peer's program is started, up to its own arguments.
pub type Words = Vec<String>;

/// graphile-worker, from npm.
pub fn graphile(folder: &Path) -> Result<Words> {
    let folder = std::path::absolute(folder.join("graphile"))?;
    if !folder.join("node_modules/graphile-worker").is_dir() {
        eprintln!("installing graphile-worker into {}", folder.display());
        fs::create_dir_all(&folder)?;
        run(Command::new("npm")
            .args(["install", "--silent", "--no-fund", "--no-audit", "--prefix"])
            .arg(&folder)
            .arg("graphile-worker@0.18"))?;
    }
    run(Command::new("node").args(["-e", ""]))?;
    Ok(vec!["node".into(), own("graphile_peer.mjs").display().to_string(), folder.display().to_string()])
}

/// River's Rust crate, from crates.io.
pub fn river(folder: &Path) -> Result<Words> {
    let folder = std::path::absolute(folder.join("river"))?;
    fs::create_dir_all(folder.join("src"))?;
    for (from, to) in [("river.toml", "Cargo.toml"), ("river_peer.rs", "src/main.rs")] {
        let (from, to) = (fs::read(own(from))?, folder.join(to));
        // What has not changed is not compiled again.
        if fs::read(&to).ok().as_ref() != Some(&from) {
            fs::write(to, from)?;
        }
    }
    let target = folder.join("target");
    run(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target))?;
    Ok(vec![target.join("release/river-peer").display().to_string()])
}

/// DBOS, from PyPI.
pub fn dbos(folder: &Path) -> Result<Words> {
    let folder = std::path::absolute(folder.join("dbos"))?;
    if !folder.join("bin/dbos").is_file() {
        eprintln!("installing DBOS into {}", folder.display());
        venv(&folder, &["dbos==3.4.*".into()])?;
    }
    Ok(vec![folder.join("bin/python").display().to_string(), own("dbos_peer.py").display().to_string()])
}

/// One of the files that belong to the peers.
fn own(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

/// Makes a Python environment with some packages.
fn venv(folder: &Path, packages: &[String]) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    run(Command::new(folder.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(packages))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if status.success() { Ok(()) } else { Err(format!("{:?} failed", command.get_program()).into()) }
}
