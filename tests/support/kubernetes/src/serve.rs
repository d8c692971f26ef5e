//! The door: connections come in, are cut, and the server goes away and comes back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::store::State;
use crate::{Server, api};

/// How the server is to go away.
pub(crate) struct Absence {
    /// For how long nothing answers.
    pub time: Duration,
    /// As one that is asked to end, not as one that is killed.
    pub graceful: bool,
}

/// Steers the door.
pub(crate) struct Door {
    /// Grows whenever all connections are to be cut.
    cuts: watch::Sender<u64>,
    absences: mpsc::Sender<Absence>,
    absent: std::sync::Mutex<Option<mpsc::Receiver<Absence>>>,
    leaving: AtomicBool,
}

impl Door {
    pub fn new() -> Self {
        let (absences, absent) = mpsc::channel(4);
        Self {
            cuts: watch::channel(0).0,
            absences,
            absent: std::sync::Mutex::new(Some(absent)),
            leaving: AtomicBool::new(false),
        }
    }

    /// Cuts every connection.
    pub fn close(&self) {
        self.cuts.send_modify(|it| *it += 1);
    }

    /// Tells when everything is to be cut.
    pub fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// Goes away.
    pub async fn leave(&self, absence: Absence) {
        self.leaving.store(absence.graceful, Ordering::Relaxed);
        let _ = self.absences.send(absence).await;
    }

    /// Whether it was asked to end, and still answers.
    pub fn leaves(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }
}

/// Takes connections.
pub(crate) async fn run(server: Arc<Server>, mut listener: TcpListener) {
    let absent = server.door.absent.lock().map(|mut it| it.take());
    let (Ok(Some(mut absent)), Ok(address)) = (absent, listener.local_addr()) else { return };
    loop {
        tokio::select! {
            incoming = listener.accept() => take(&server, incoming),
            Some(absence) = absent.recv() => {
                if absence.graceful {
                    farewell(&server, listener).await;
                } else {
                    drop(listener);
                }
                // A new server's memory of changes begins now.
                server.store.write(State::forget);
                server.door.close();
                tokio::time::sleep(absence.time).await;
                server.door.leaving.store(false, Ordering::Relaxed);
                listener = match back(address).await {
                    Some(listener) => listener,
                    None => return,
                };
            }
        }
    }
}

/// Serves a connection that came.
fn take(server: &Arc<Server>, incoming: io::Result<(TcpStream, SocketAddr)>) {
    let Ok((stream, _)) = incoming else { return };
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

/// The last minute of a server that was asked to end: a second later nobody is let
/// in any more, and at its end watches end as they should.
async fn farewell(server: &Arc<Server>, listener: TcpListener) {
    let second = server.cluster.scaled(Duration::from_secs(1)).max(Duration::from_millis(300));
    let closed = Instant::now() + second;
    while let Ok(incoming) = timeout_at(closed, listener.accept()).await {
        take(server, incoming);
    }
    drop(listener);
    server.cluster.sleep(60_000).await;
    server.faults.cut_watches("", true);
    // What they still have to say goes out first.
    tokio::time::sleep(Duration::from_millis(50)).await;
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
