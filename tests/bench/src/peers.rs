//! Frameworks of another language serving the same table: for readers of the report, who know
//! these and want to know where Podyard stands. They have no bars.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Result, rest::Contender};

/// Installs what they need, unless it is there, and says how they are started.
pub fn contenders(folder: &Path) -> Result<Vec<Contender>> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers");
    let python = folder.join("bin/python");
    if !folder.join("bin/gunicorn").is_file() {
        eprintln!("installing the peers into {}", folder.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(own.join("requirements.txt")))?;
    }
    // Absolute, since the servers do not start where this was called.
    let python = std::path::absolute(python)?;
    let peer = |name: &str, file: &str| Contender {
        name: name.to_owned(),
        command: format!("{} {} {{listen}} {{database}}", python.display(), own.join(file).display()),
        headers: Vec::new(),
    };
    Ok(vec![peer("FastAPI", "fastapi_peer.py"), peer("DRF", "drf_peer.py")])
}

fn run(command: &mut Command) -> Result<()> {
    if command.status()?.success() {
        Ok(())
    } else {
        Err(format!("{:?} failed", command.get_program()).into())
    }
}
