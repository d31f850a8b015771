//! Idle connections to the API, kept by the thread that used them last.
//! Pingora's own pool spawns a task for every connection that comes back and asks the kernel for its peer when it goes
//! out again: both cost more than what the gateway adds to a request.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use pingora::protocols::Stream;
use thread_local::ThreadLocal;
use tokio::io::AsyncReadExt;

/// Idle connections: a shelf for each thread, newest last.
pub(super) struct Idle {
    shelves: ThreadLocal<Mutex<VecDeque<Kept>>>,
    /// Connections on one shelf at most.
    most: usize,
    /// How long one is kept.
    longest: Duration,
}

struct Kept {
    stream: Stream,
    address: SocketAddr,
    since: Instant,
}

impl Idle {
    /// Shelves of `most` connections, each kept for `longest`.
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self { shelves: ThreadLocal::new(), most, longest }
    }

    /// The newest connection to `address` that is open as far as can be known without asking. Those that are not are
    /// dropped on the way.
    pub(super) fn take(&self, address: SocketAddr) -> Option<Stream> {
        let mut shelf = self.shelf();
        while let Some(place) = shelf.iter().rposition(|kept| kept.address == address) {
            let mut kept = shelf.remove(place)?;
            if self.is_useful(&mut kept) {
                return Some(kept.stream);
            }
        }
        None
    }

    /// Keeps a connection to `address`; the oldest one goes when there is no room.
    pub(super) fn keep(&self, stream: Stream, address: SocketAddr) {
        let mut shelf = self.shelf();
        shelf.push_back(Kept { stream, address, since: Instant::now() });
        if shelf.len() > self.most {
            shelf.pop_front();
        }
    }

    /// Drops what the API has closed, or was kept for long enough.
    pub(super) fn sweep(&self) {
        for shelf in &self.shelves {
            lock(shelf).retain_mut(|kept| self.is_useful(kept));
        }
    }

    fn is_useful(&self, kept: &mut Kept) -> bool {
        kept.since.elapsed() < self.longest && is_open(&mut kept.stream)
    }

    fn shelf(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        lock(self.shelves.get_or_default())
    }
}

/// A shelf that a panic left behind is as good as any: every connection is looked at before it is used.
fn lock(shelf: &Mutex<VecDeque<Kept>>) -> MutexGuard<'_, VecDeque<Kept>> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether nothing came on an idle connection: neither its end nor bytes that nobody asked for.
fn is_open(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let read = pin!(tokio::task::unconstrained(stream.read(&mut byte)));
    read.poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection, the API's first.
    async fn connection() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (far, Box::new(pingora::protocols::l4::stream::Stream::from(near)))
    }

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    #[tokio::test]
    async fn the_newest_open_connection_is_taken() {
        let idle = Idle::new(2, Duration::from_secs(60));
        let (_first, near) = connection().await;
        let oldest = near.id();
        idle.keep(near, ADDRESS);
        let (_second, near) = connection().await;
        let newest = near.id();
        idle.keep(near, ADDRESS);
        assert_eq!(idle.take(ADDRESS).map(|stream| stream.id()), Some(newest));
        assert_eq!(idle.take(ADDRESS).map(|stream| stream.id()), Some(oldest));
        assert!(idle.take(ADDRESS).is_none());
    }

    #[tokio::test]
    async fn what_is_closed_or_speaks_unasked_is_not_taken() {
        let idle = Idle::new(8, Duration::from_secs(60));
        let (far, near) = connection().await;
        idle.keep(near, ADDRESS);
        drop(far);
        let (mut far, near) = connection().await;
        far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        far.flush().await.unwrap();
        idle.keep(near, ADDRESS);
        // The runtime hears of both with its next look at the network.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(idle.take(ADDRESS).is_none());
    }

    #[tokio::test]
    async fn a_connection_to_another_address_waits_for_its_turn() {
        let idle = Idle::new(8, Duration::from_secs(60));
        let other = SocketAddr::new(ADDRESS.ip(), 2);
        let (_far, near) = connection().await;
        idle.keep(near, ADDRESS);
        let (_far_too, near) = connection().await;
        idle.keep(near, other);
        assert!(idle.take(ADDRESS).is_some());
        assert!(idle.take(ADDRESS).is_none());
        assert!(idle.take(other).is_some());
    }

    #[tokio::test]
    async fn an_old_connection_and_one_too_many_are_dropped() {
        let none = Idle::new(0, Duration::from_secs(60));
        let (_far, near) = connection().await;
        none.keep(near, ADDRESS);
        assert!(none.take(ADDRESS).is_none());

        let idle = Idle::new(1, Duration::from_secs(60));
        let (_far, first) = connection().await;
        let (_far_too, second) = connection().await;
        let kept = second.id();
        idle.keep(first, ADDRESS);
        idle.keep(second, ADDRESS);
        assert_eq!(idle.take(ADDRESS).map(|stream| stream.id()), Some(kept));
        assert!(idle.take(ADDRESS).is_none());

        let brief = Idle::new(8, Duration::ZERO);
        let (_far, near) = connection().await;
        brief.keep(near, ADDRESS);
        brief.sweep();
        assert!(brief.shelf().is_empty());
    }
}
