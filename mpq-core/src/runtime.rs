//! What a server's endpoint runs on: tokio, and one thread beside it.
//!
//! All datagrams of all connections are received by one task, noq's endpoint driver. It gives way after
//! 50 µs of work, and among the tasks of a thousand busy connections its turn comes so seldom that the
//! socket's buffer fills with acknowledgements: round trips of seconds, and losses where the network has
//! none. On a thread of its own, it is the kernel that gives it its share of the time.

use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use noq::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::Handle;

/// For one endpoint.
#[derive(Debug, Default)]
pub(crate) struct EndpointThread(AtomicBool);

impl Runtime for EndpointThread {
    /// noq spawns the driver of the endpoint before any other task.
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if self.0.swap(true, Ordering::Relaxed) {
            return TokioRuntime.spawn(future);
        }
        let tokio = Handle::current();
        let thread = thread::Builder::new().name("mpq-endpoint".to_owned());
        // It ends with the endpoint.
        if let Err(error) = thread.spawn(move || tokio.block_on(future)) {
            panic!("the system has no thread for an endpoint: {error}");
        }
    }

    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Box<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}
