//! Probes of containers that really run.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::Pod;
use super::expand::expand;
use crate::value::{list, text};

/// Asks once; why it failed.
pub(crate) async fn ask(known: &Pod, container: &Value, probe: &Value) -> Result<(), String> {
    let seconds = probe["timeoutSeconds"].as_u64().unwrap_or(1);
    let all = async {
        if probe["exec"].is_object() {
            return exec(known, container, probe).await;
        }
        let (of, http) = match &probe["httpGet"] {
            Value::Object(_) => (&probe["httpGet"], true),
            _ => (&probe["tcpSocket"], false),
        };
        let port = port(container, &of["port"]).ok_or("no such port")?;
        let mut stream = TcpStream::connect((known.ip, port))
            .await
            .map_err(|error| format!("dial tcp {}:{port}: connect: {error}", known.ip))?;
        if !http {
            return Ok(());
        }
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: {}:{port}\r\nUser-Agent: kube-probe/1.36\r\nConnection: close\r\n",
            text(&of["path"]),
            known.ip,
        );
        for header in list(&of["httpHeaders"]) {
            request.push_str(&format!("{}: {}\r\n", text(&header["name"]), text(&header["value"])));
        }
        request.push_str("\r\n");
        let io = |error: std::io::Error| error.to_string();
        stream.write_all(request.as_bytes()).await.map_err(io)?;
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).await.map_err(io)?;
        let code: u16 = String::from_utf8_lossy(&begin[9..]).parse().unwrap_or_default();
        match code {
            200..400 => Ok(()),
            code => Err(format!("HTTP probe failed with statuscode: {code}")),
        }
    };
    match tokio::time::timeout(Duration::from_secs(seconds.max(1)), all).await {
        Ok(result) => result,
        Err(_) => Err("context deadline exceeded".to_owned()),
    }
}

/// A port by its number or its name.
pub(crate) fn port(container: &Value, port: &Value) -> Option<u16> {
    if let Some(number) = port.as_u64() {
        return u16::try_from(number).ok();
    }
    let named = text(port);
    named.parse().ok().or_else(|| {
        let found = list(&container["ports"]).iter().find(|it| it["name"] == named)?;
        u16::try_from(found["containerPort"].as_u64()?).ok()
    })
}

async fn exec(known: &Pod, container: &Value, probe: &Value) -> Result<(), String> {
    let here = known.containers().get(text(&container["name"])).cloned();
    let here = here.ok_or("no such container")?;
    let words: Vec<String> =
        list(&probe["exec"]["command"]).iter().map(|it| expand(text(it), &here.env)).collect();
    let (program, arguments) = words.split_first().ok_or("no command")?;
    let output = Command::new(program)
        .args(arguments)
        .envs(here.env)
        .current_dir(here.dir)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}
