//! `podyard`: the one binary. It names the services, so that their resource
//! types register, and starts what the command line asks for.

mod config;
mod kubernetes;
mod process;
mod resolver;
mod serve;
mod terminal;

use std::process::ExitCode;

// Its types register themselves, but only if something names the crate.
use podyard_site as _;

use crate::config::Command;

/// Has large blocks go back to the system when they are freed. Left to itself,
/// glibc keeps the 19 MiB of each password's check for the next, in an arena
/// per thread: after a few logins the process would stay at over 100 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn frugal_memory() {
    #[expect(unsafe_code, reason = "sets two numbers of the allocator, before any thread is started")]
    // SAFETY: mallopt is safe to call at any time; here nobody else runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 4);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn frugal_memory() {}

fn main() -> ExitCode {
    frugal_memory();
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(text) => {
            eprintln!("podyard: {text}");
            return ExitCode::from(2);
        }
    };
    let command = cli.command.unwrap_or(Command::Serve(cli.serve));
    let result = match command {
        // Small helpers of the process driver: no runtime, no log.
        Command::Shim { dir } => return podyard_driver::shim_main(&dir),
        Command::Shell { dir, terminal } => return podyard_driver::shell_main(&dir, &terminal),
        Command::Files { listen, dir, base } => {
            let secret = std::env::var("PODYARD_SPACE_SECRET").ok();
            podyard_files::run(listen, &dir, &base, secret).map_err(|e| e.to_string())
        }
        Command::Version => {
            println!("podyard {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        // What its shell returns it returns as well.
        Command::Terminal(args) => return terminal::main(&args),
        Command::Migrate(args) => process::migrate(&args),
        Command::Serve(args) => process::block_on(serve::serve(*args)),
        Command::Worker(args) => process::block_on(serve::work(*args)),
        Command::Doctor(what) => process::block_on(kubernetes::doctor(*what)),
        Command::Controller(args) => process::block_on(kubernetes::controller(*args)),
        Command::Crd => kubernetes::crd(),
        Command::ResetPassword(args) => process::block_on(serve::reset_password(args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("podyard: {text}");
            ExitCode::FAILURE
        }
    }
}
