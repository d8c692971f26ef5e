//! The door: connections come in, are cut, and the server goes away and comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::store::State;
use crate::{Server, api};

/// Steers the door.
pub(crate) struct Door {
    /// Grows whenever all connections are to be cut.
    cuts: watch::Sender<u64>,
    /// For how long nothing answers.
    absences: mpsc::Sender<Duration>,
    absent: std::sync::Mutex<Option<mpsc::Receiver<Duration>>>,
}

impl Door {
    pub fn new() -> Self {
        let (absences, absent) = mpsc::channel(4);
        Self { cuts: watch::channel(0).0, absences, absent: std::sync::Mutex::new(Some(absent)) }
    }

    /// Cuts every connection.
    pub fn close(&self) {
        self.cuts.send_modify(|it| *it += 1);
    }

    /// Tells when everything is to be cut.
    pub fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// Goes away, for so long.
    pub async fn leave(&self, for_so_long: Duration) {
        let _ = self.absences.send(for_so_long).await;
    }
}

/// Takes connections.
pub(crate) async fn run(server: Arc<Server>, mut listener: TcpListener) {
    let absent = server.door.absent.lock().map(|mut it| it.take());
    let (Ok(Some(mut absent)), Ok(address)) = (absent, listener.local_addr()) else { return };
    loop {
        tokio::select! {
            incoming = listener.accept() => {
                let Ok((stream, _)) = incoming else { continue };
                let _ = stream.set_nodelay(true);
                let server = server.clone();
                let mut cuts = server.door.cuts.subscribe();
                tokio::spawn(async move {
                    let service = service_fn(move |request| api::handle(server.clone(), request));
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    tokio::select! {
                        _ = connection => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
            Some(time) = absent.recv() => {
                drop(listener);
                // A new server's memory of changes begins now.
                server.store.write(State::forget);
                server.door.close();
                tokio::time::sleep(time).await;
                listener = match back(address).await {
                    Some(listener) => listener,
                    None => return,
                };
            }
        }
    }
}

/// Listens on the same port again.
async fn back(address: SocketAddr) -> Option<TcpListener> {
    for _ in 0..500 {
        if let Ok(listener) = TcpListener::bind(address).await {
            return Some(listener);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}
