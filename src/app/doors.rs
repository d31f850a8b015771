//! The listeners' doors: what closes them, and how they are handed to the gateway that comes after this one.
//! Pingora closes its listeners only when it ends everything; these close first, and what is under way goes on.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as Serves;
use pingora::services::listening::Service;
use tokio::sync::watch;

use super::StartError;
use crate::config::ListenSection;

/// All doors of this process.
#[derive(Clone, Default)]
pub(super) struct Doors {
    closed: watch::Sender<bool>,
    listeners: Arc<OnceLock<ListenFds>>,
    blocked: watch::Sender<Option<String>>,
}

impl Doors {
    /// Accepts no further connection.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits at `socket` for the listeners of the gateway that runs, and keeps those at `addresses`. Blocks.
    ///
    /// # Errors
    /// When nobody hands them over.
    pub(super) fn take_over(&self, socket: &Path, addresses: &HashSet<String>) -> Result<(), StartError> {
        let mut listeners = Fds::new();
        let taken = listeners.get_from_sock(socket.display().to_string().as_str());
        taken.map_err(|error| {
            let _ = std::fs::remove_file(socket);
            let (socket, hint) = (socket.display(), "SIGQUIT tells the one that runs to");
            StartError::Unavailable(format!(
                "listen.upgrade_socket: nobody handed listeners over at {socket} ({hint}): {error}"
            ))
        })?;
        // What nobody accepts from must not be listened on.
        listeners.close_unclaimed(addresses);
        let _ = self.listeners.set(ListenFds::new(listeners.into()));
        Ok(())
    }

    /// An address that somebody else listens on, and so nothing can begin.
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Waits until that is known.
    pub(super) async fn are_blocked(&self) {
        let mut blocked = self.blocked.subscribe();
        if blocked.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether `address` is ours: handed over, or nobody's yet.
    fn has(&self, listeners: &ListenFds, address: &str) -> bool {
        listeners.lock().get(address).is_some() || TcpListener::bind(address).is_ok()
    }

    /// Gives the listeners to the process that waits for them at `socket`. They stay open here too. Blocks.
    ///
    /// # Errors
    /// When nobody takes them.
    pub(super) fn hand_over(&self, socket: &Path) -> Result<(), String> {
        let listeners = self.listeners.get().ok_or("there are none yet")?;
        let sent = listeners.lock().send_to_sock(socket.display().to_string().as_str());
        sent.map(drop).map_err(|error| error.to_string())
    }
}

/// A service behind one of the doors.
pub(super) struct Door<A> {
    service: Service<A>,
    doors: Doors,
}

impl<A> Door<A> {
    pub(super) fn new(service: Service<A>, doors: &Doors) -> Self {
        Self { service, doors: doors.clone() }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Serves for Door<A> {
    async fn start_service(&mut self, fds: Option<ListenFds>, _shutdown: ShutdownWatch, listeners_per_fd: usize) {
        // All services are given the same ones; those that were taken over take their place.
        let fds = fds.map(|given| self.doors.listeners.get_or_init(|| given).clone());
        if let Some(listeners) = &fds {
            let addresses = self.service.listen_addresses().unwrap_or_default();
            // Pingora would panic, and the other services go on.
            if let Some(address) = addresses.into_iter().find(|address| !self.doors.has(listeners, address)) {
                self.doors.blocked.send_replace(Some(address));
                return;
            }
        }
        self.service.start_service(fds, self.doors.closed.subscribe(), listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        self.service.name()
    }

    fn threads(&self) -> Option<usize> {
        Serves::threads(&self.service)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        self.service.listen_addresses()
    }
}

/// A listener whose idle connections are cheap: Pingora keeps 64 KiB for reading on each unless told otherwise, and reads
/// larger pieces past the buffer anyway.
pub(super) fn listener(address: SocketAddr) -> ListenerConfig {
    const READ_BYTES: usize = 1024;
    ListenerConfig::tcp(address.to_string()).l4_buffer(L4BufferSettings::default().read(READ_BYTES))
}

/// Where the listeners will be handed to us: a socket that can be made there.
pub(super) fn arrival(listen: &ListenSection) -> Result<PathBuf, StartError> {
    let socket = listen.upgrade_socket.clone();
    let socket = socket.ok_or_else(|| StartError::Config("listen.upgrade_socket: needed by --upgrade".to_owned()))?;
    if let Some(others) = open_to_others(&socket) {
        return Err(StartError::Config(format!("listen.upgrade_socket: {others}")));
    }
    // One that nobody cleared away is in the way of nothing.
    let _ = std::fs::remove_file(&socket);
    UnixListener::bind(&socket).and_then(|_| std::fs::remove_file(&socket)).map_err(|error| {
        StartError::Unavailable(format!("listen.upgrade_socket: cannot listen at {}: {error}", socket.display()))
    })?;
    Ok(socket)
}

/// Who else may enter the folder of `socket`: whoever can connect to it can take the listeners.
pub(super) fn open_to_others(socket: &Path) -> Option<String> {
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let open = std::fs::metadata(folder).is_ok_and(|folder| folder.mode() & 0o077 != 0);
    open.then(|| format!("others may enter {} (chmod 700 it)", folder.display()))
}
