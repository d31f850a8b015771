//! Work that must not end with the request that began it: a refresh, an end that waits for the store.
//! It is counted, so that whoever stops the process can wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle as Runtime;
use tokio::task::JoinHandle;

use super::Broker;
use crate::telemetry::trace::carried;

/// Where detached work runs, and how much of it is under way.
pub(super) struct Detached {
    runtime: Runtime,
    under_way: Arc<AtomicUsize>,
}

/// One piece of it.
struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Detached {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self { runtime, under_way: Arc::default() }
    }
}

impl Broker {
    /// Lets `work` go on beside whatever waits here.
    pub(super) fn go_on<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.detached.under_way.fetch_add(1, Ordering::AcqRel);
        let under_way = UnderWay(self.detached.under_way.clone());
        let work = carried(work);
        self.detached.runtime.spawn(async move {
            let done = work.await;
            drop(under_way);
            done
        })
    }

    /// Pieces of work that have not come to their end.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.detached.under_way.load(Ordering::Acquire)
    }
}
