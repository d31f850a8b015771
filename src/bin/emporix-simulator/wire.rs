//! The TCP connection below a request, for the misbehaviour HTTP libraries do not offer.
//! A handler may write raw bytes and cut the connection; whatever it answers afterwards never reaches the client.

use std::{
    io::{self, ErrorKind, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    response::{IntoResponse, Response},
    serve::IncomingStream,
};
use http::StatusCode;
use tokio::net::TcpListener;

/// A second handle on a client's connection; absent if the system had no descriptor to spare.
#[derive(Clone)]
pub(crate) struct Wire {
    stream: Option<Arc<TcpStream>>,
}

impl Connected<IncomingStream<'_, TcpListener>> for Wire {
    fn connect_info(incoming: IncomingStream<'_, TcpListener>) -> Self {
        let second = incoming.io().as_fd().try_clone_to_owned().ok();
        Self { stream: second.map(|descriptor| Arc::new(TcpStream::from(descriptor))) }
    }
}

impl Wire {
    /// The client's port.
    pub(crate) fn port(&self) -> Option<u16> {
        Some(self.stream.as_deref()?.peer_addr().ok()?.port())
    }

    /// Writes `bytes` past the HTTP library.
    pub(crate) async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream.as_deref().ok_or(ErrorKind::NotConnected)?;
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                // The descriptor is shared with tokio, hence non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Closes the connection; the answer returned here only ends the handler.
    pub(crate) fn cut(&self) -> Response {
        if let Some(stream) = &self.stream {
            // Fails only if the client was faster.
            let _already_closed = stream.shutdown(Shutdown::Both);
        }
        StatusCode::NO_CONTENT.into_response()
    }
}
