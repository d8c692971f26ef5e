//! The double on its own: `podyard-kubernetes-double [--port N] [--speed X] [--real] [--open]
//! [--kubeconfig FILE]`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use podyard_kubernetes_double::{Double, Options};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podyard-kubernetes-double: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> io::Result<()> {
    let mut options = Options::default();
    let mut kubeconfig: Option<PathBuf> = None;
    let mut arguments = std::env::args().skip(1);
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| wrong("a value is missing"));
        match argument.as_str() {
            "--port" => options.port = value()?.parse().map_err(|_| wrong("--port: no port"))?,
            "--speed" => options.speed = value()?.parse().map_err(|_| wrong("--speed: no number"))?,
            "--kubeconfig" => kubeconfig = Some(value()?.into()),
            "--real" => options.real = true,
            "--open" => options.open = true,
            other => return Err(wrong(&format!("{other} is not known"))),
        }
    }
    let double = Double::start(options).await?;
    if let Some(path) = &kubeconfig {
        double.write_kubeconfig(path)?;
    }
    println!("{}", double.url());
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
    double.stop().await;
    Ok(())
}
