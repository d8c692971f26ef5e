//! What the gateway must know of a client's connection to be able to end it.

use std::{
    any::Any,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

use actix_web::{HttpRequest, dev::Extensions};
use socket2::Socket;
use tokio::net::TcpStream;

/// A client's connection. Only the number of its socket, so that a connection without a tunnel
/// costs no second descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Connection(RawFd);

/// Tells the gateway of a client's connection: `HttpServer::on_connect(podyard_gateway::connected)`.
/// Without it, the end of a tunnel reaches a client that does not read only when it reads.
pub fn connected(connection: &dyn Any, data: &mut Extensions) {
    if let Some(stream) = connection.downcast_ref::<TcpStream>() {
        data.insert(Connection(stream.as_raw_fd()));
    }
}

/// The client of a request whose answer waits long for something to send: nobody else looks
/// whether it is still there.
#[derive(Debug)]
pub struct Client(Socket);

impl Client {
    /// Of a request, if the server tells the gateway of its connections.
    pub fn of(req: &HttpRequest) -> Option<Self> {
        socket(req).map(Self)
    }

    /// Whether it has closed its side.
    pub fn has_gone(&self) -> bool {
        match self.0.peek(&mut [std::mem::MaybeUninit::uninit()]) {
            Ok(n) => n == 0,
            // The socket waits for nobody: this only says that nothing has come.
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

impl Connection {
    /// The socket, by a descriptor of its own. Only while the connection's request is being served
    /// or its body being sent.
    pub(crate) fn socket(&self) -> Option<Socket> {
        #[expect(unsafe_code, reason = "actix keeps the socket and gives nobody more than its number")]
        // SAFETY: actix owns the socket longer than the request's future and the answer's body.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0) };
        fd.try_clone_to_owned().ok().map(Socket::from)
    }
}

/// The socket of a request's connection, by a descriptor of its own, for other
/// routes that must be able to end it. Only while the request is being served.
#[must_use]
pub fn socket(req: &HttpRequest) -> Option<Socket> {
    req.conn_data::<Connection>()?.socket()
}
