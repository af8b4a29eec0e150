//! The new process: finds the old one, takes what that listens with, and tells it when it serves.

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;

use super::exchange::{Agreed, Conversation, Gifts, Taken, Unheard, WORD_LIMIT, meeting_point};
use crate::checkpoint::command::RunningServer;
use crate::checkpoint::control::{Control, wait_for};
use crate::error::{At, Error};

/// The server that is taken over from, which serves yet.
#[derive(Debug)]
pub(crate) struct Predecessor {
    server: RunningServer,
    /// Where it is waited for.
    meeting: Meeting,
    /// How long what is running there may take.
    drain: Duration,
    _only_one: File,
}

/// It has given what it listens with, and wants to hear that this process serves.
#[derive(Debug)]
pub(crate) struct Promise {
    conversation: Conversation,
    drain: Duration,
    _only_one: File,
}

/// A socket in the old server's directory, which goes with this.
#[derive(Debug)]
struct Meeting {
    control: Control,
    listener: UnixListener,
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let point = meeting_point(&self.control);
        let _ = self.control.act(|| std::fs::remove_file(point));
    }
}

impl Predecessor {
    /// The server with this process id, or that of the file; to be called before this process becomes another user.
    ///
    /// # Errors
    /// There is no such server, or another command is about it.
    pub(crate) fn find(
        pid: Option<i32>,
        pid_file: Option<&Path>,
        drain: Duration,
    ) -> Result<Self, Error> {
        // A file that names nobody, or somebody else, is only written to then.
        let pid_file = pid_file.filter(|_| pid.is_none());
        let server = RunningServer::find(pid, pid_file)?;
        let only_one = server.lock()?;
        let control = server.control().clone();
        let point = meeting_point(&control);
        // Of one that was killed.
        let _ = control.act(|| std::fs::remove_file(&point));
        let listener = control.act(|| UnixListener::bind(&point)).at(&point)?;
        let meeting = Meeting { control, listener };
        Ok(Self {
            server,
            meeting,
            drain,
            _only_one: only_one,
        })
    }

    /// Takes what it listens with. It goes on with its connections, and takes nobody in, until this process
    /// [serves](Promise::serves) or has ended.
    ///
    /// # Errors
    /// It does not give it, and serves as before.
    pub(crate) fn take(self) -> Result<(Gifts, Promise), Error> {
        let Self {
            server,
            meeting,
            drain,
            _only_one,
        } = self;
        let told = server.tell_to_hand_over();
        told.map_err(|_| Error::NoServer(server.pid))?;
        let stream = meeting.wait(&server)?;
        let conversation = Conversation::new(stream).map_err(|error| not_taken(error.into()))?;
        let gifts = conversation.receive().map_err(not_taken)?;
        let promise = Promise {
            conversation,
            drain,
            _only_one,
        };
        Ok((gifts, promise))
    }
}

impl Meeting {
    fn wait(&self, server: &RunningServer) -> Result<UnixStream, Error> {
        self.listener.set_nonblocking(true).at("handover.sock")?;
        let is_it = |stream: &UnixStream| {
            socket_peercred(stream).is_ok_and(|peer| peer.pid.as_raw_pid() == server.pid)
        };
        let came = wait_for(WORD_LIMIT, || {
            let came = self.listener.accept().ok().map(|(stream, _)| stream);
            match came.filter(is_it) {
                Some(stream) => Some(Some(stream)),
                None => server.has_ended().then_some(None),
            }
        });
        match came {
            Some(Some(stream)) => Ok(stream),
            Some(None) => Err(Error::Died),
            None => Err(not_taken(Unheard::Silent)),
        }
    }
}

impl Promise {
    /// This process serves from now on.
    ///
    /// # Errors
    /// The old one has given up waiting, and serves.
    pub(crate) fn serves(self) -> Result<(), Error> {
        let taken = Taken {
            pid: std::process::id(),
            drain: self.drain,
        };
        self.conversation.say(&taken).map_err(not_taken)?;
        let Agreed {} = self.conversation.hear().map_err(not_taken)?;
        Ok(())
    }
}

fn not_taken(why: Unheard) -> Error {
    Error::NotTakenOver(why.to_string())
}
