//! An address that is listened on while the server is not frozen.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How many connections there may be; who comes then waits in the backlog.
const MAX_CONNECTIONS: usize = 1024;
/// How many may wait there.
const BACKLOG: u32 = 1024;
/// Where none can be accepted, since the process has too many files open: a moment until it is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// How far open a door is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Open,
    /// Nobody comes in any more. Who is there may finish.
    Leaving,
}

/// What a connection needs to know.
pub(crate) struct Guest {
    pub(crate) stream: TcpStream,
    pub(crate) remote: SocketAddr,
    pub(crate) stage: watch::Receiver<Stage>,
}

type Serve = Arc<dyn Fn(Guest) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Where connections come in, each to be served.
pub(crate) struct Door {
    serve: Serve,
    open: Option<Open>,
    /// What listens already, and is to be used at first.
    listener: Option<std::net::TcpListener>,
}

/// What listens; it ends when `stage` is dropped.
struct Open {
    address: SocketAddr,
    /// Another descriptor of the listener, for another process; none when nobody comes in any more.
    listener: Option<std::net::TcpListener>,
    stage: watch::Sender<Stage>,
    done: JoinHandle<()>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("open", &self.open.is_some())
            .finish_non_exhaustive()
    }
}

impl Door {
    /// One that is closed.
    pub(crate) fn new<F>(serve: impl Fn(Guest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            serve: Arc::new(move |guest| Box::pin(serve(guest))),
            open: None,
            listener: None,
        }
    }

    /// When it is opened for the first time, this listens, wherever it does.
    pub(crate) fn pass_on(&mut self, listener: std::net::TcpListener) {
        self.listener = Some(listener);
    }

    /// Opens it there, unless it is open. Returns the address, with the port that was free if none was named.
    ///
    /// # Errors
    /// The address is in use, or not one of this host.
    pub(crate) fn open(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        if let Some(open) = &self.open {
            return Ok(open.address);
        }
        let listener = match self.listener.take() {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)?
            }
            None => listen(address)?,
        };
        let address = listener.local_addr()?;
        let another = listener.as_fd().try_clone_to_owned()?;
        let (stage, watched) = watch::channel(Stage::Open);
        let done = tokio::spawn(accept(listener, self.serve.clone(), watched));
        self.open = Some(Open {
            address,
            listener: Some(another.into()),
            stage,
            done,
        });
        Ok(address)
    }

    /// What listens, for another process as well; nothing if it is closed.
    ///
    /// # Errors
    /// Too many files are open.
    pub(crate) fn share(&self) -> io::Result<Option<std::net::TcpListener>> {
        let listener = self.open.as_ref().and_then(|open| open.listener.as_ref());
        listener.map(std::net::TcpListener::try_clone).transpose()
    }

    /// Lets nobody in any more, and has those who are in finish.
    pub(crate) fn leave(&mut self) {
        if let Some(open) = &mut self.open {
            // Or those who come would be left to wait.
            open.listener = None;
            let _ = open.stage.send(Stage::Leaving);
        }
    }

    /// Closes it. All sockets are closed when this is over.
    pub(crate) async fn close(&mut self) {
        if let Some(Open { stage, done, .. }) = self.open.take() {
            drop(stage);
            let _ = done.await;
        }
    }
}

/// Where QUIC listens on all addresses of both families, so does this.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() && address.ip().is_unspecified() {
        SockRef::from(&socket).set_only_v6(false)?;
    }
    // Connections of before the move do not keep the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, serve: Serve, mut stage: watch::Receiver<Stage>) {
    let mut listener = Some(listener);
    let mut guests = JoinSet::new();
    loop {
        let may_enter = listener.as_ref().filter(|_| guests.len() < MAX_CONNECTIONS);
        tokio::select! {
            changed = stage.changed() => match changed {
                Ok(()) => listener = None,
                Err(_) => break,
            },
            Some(_) = guests.join_next() => {}
            came = async { may_enter.expect("there is one").accept().await }, if may_enter.is_some() => {
                match came {
                    Ok((stream, remote)) => {
                        let stage = stage.clone();
                        guests.spawn(serve(Guest { stream, remote, stage }));
                    }
                    Err(error) => {
                        tracing::debug!("cannot accept over TCP: {error}");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }
    drop(listener);
    guests.shutdown().await;
}
