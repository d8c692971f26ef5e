//! Serves a folder: `cargo run -p podyard-files --example serve -- 127.0.0.1:8080 <dir>`.

use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, dir] = arguments.as_slice() else {
        return Err(io::Error::other("usage: serve <address> <folder>"));
    };
    podyard_files::run(listen.parse().map_err(io::Error::other)?, Path::new(dir), "/", None)
}
