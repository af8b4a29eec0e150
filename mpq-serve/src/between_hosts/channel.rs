//! The way from A to B: a program such as ssh, that runs the other end there.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use mpq_core::printable;

use super::interruption::Interruption;
use super::messages::{ToSource, ToTarget, read, write};
use super::options::MoveOptions;
use super::ssh::quoted;
use crate::checkpoint::control::{POLL_INTERVAL, wait_for};
use crate::checkpoint::images::Images;
use crate::error::Error;
use crate::log;

/// How often it is looked whether the operator ends the move.
const INTERRUPTION_INTERVAL: Duration = Duration::from_millis(20);
/// A copy of which nothing goes on for so long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(20);
/// How long the program may take to end once it has nothing to do.
const ENDING_LIMIT: Duration = Duration::from_secs(2);
/// No longer line of the other end is told, bytes.
const MAX_LINE: u64 = 4096;

/// A way to B, and somebody at its end.
#[derive(Debug)]
pub struct Channel {
    ssh: Child,
    to: Option<ChildStdin>,
    from: Receiver<Result<ToSource, String>>,
}

impl Channel {
    /// Starts `mpq-serve receive` at B: as the operator says, or else by this program.
    ///
    /// # Errors
    /// The program that reaches B cannot be started.
    pub fn open(options: &MoveOptions, program: &Path) -> Result<Self, Error> {
        let reach = options.transfer.ssh();
        let usual = || quoted(&program.display().to_string());
        let remote = options.remote_program.clone().unwrap_or_else(usual);
        let ssh = reach
            .command(&format!("{remote} receive"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut ssh = ssh.map_err(|error| Error::Start(format!("{}: {error}", reach.program())))?;
        let (sender, from) = channel();
        if let Some(stdout) = ssh.stdout.take() {
            thread::spawn(move || listen(stdout, &sender));
        }
        if let Some(stderr) = ssh.stderr.take() {
            let host = options.transfer.to.clone();
            thread::spawn(move || relay(stderr, &host));
        }
        Ok(Self {
            to: ssh.stdin.take(),
            ssh,
            from,
        })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Nobody is there any more.
    pub fn send(&mut self, message: &ToTarget) -> Result<(), String> {
        let sent = match &mut self.to {
            Some(to) => write(to, message),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        sent.map_err(|_| self.end())
    }

    /// Waits for a message, but no longer than this, nor if the operator ends the move.
    ///
    /// # Errors
    /// None came; or B has given up.
    pub fn receive(
        &mut self,
        limit: Duration,
        interruption: Option<&Interruption>,
    ) -> Result<ToSource, String> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.from.recv_timeout(left.min(INTERRUPTION_INTERVAL)) {
                Ok(Ok(ToSource::Failed { failure })) => return Err(printable(&failure.message)),
                Ok(message) => return message,
                Err(RecvTimeoutError::Disconnected) => return Err(self.end()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interruption.is_some_and(Interruption::came) {
                return Err("it was told to end".to_owned());
            }
            if left.is_zero() {
                let limit = limit.as_secs_f64();
                return Err(format!("nothing was heard from B for {limit} s"));
            }
        }
    }

    /// Sends the images.
    ///
    /// # Errors
    /// One cannot be read; nobody is there any more, or the way is blocked; the operator ends the move.
    pub fn copy(&mut self, images: &Images, interruption: &Interruption) -> Result<(), String> {
        let Some(to) = &mut self.to else {
            return Err(self.end());
        };
        let sent = AtomicU64::new(0);
        let ssh = &mut self.ssh;
        let result = thread::scope(|scope| {
            let copying = scope.spawn(|| copy(images, to, &sent));
            let mut last = (0, Instant::now());
            while !copying.is_finished() {
                thread::sleep(POLL_INTERVAL);
                let now = sent.load(Ordering::Relaxed);
                if now != last.0 {
                    last = (now, Instant::now());
                }
                if last.1.elapsed() > STALL_LIMIT || interruption.came() {
                    let _ = ssh.kill();
                }
            }
            copying.join().expect("it does not panic")
        });
        match result {
            Err(_) if interruption.came() => Err("it was told to end".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.end()),
            result => result.map_err(|error| error.to_string()),
        }
    }

    /// What is to be said of a program that has ended, or is to.
    fn end(&mut self) -> String {
        self.to = None;
        let ended = wait_for(ENDING_LIMIT, || self.ssh.try_wait().ok().flatten());
        match ended {
            Some(status) => format!("the way to B has ended: {status}"),
            None => "the way to B has ended".to_owned(),
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.end();
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

fn copy(images: &Images, to: &mut ChildStdin, sent: &AtomicU64) -> io::Result<()> {
    for (name, image) in &images.manifest.files {
        let message = ToTarget::Image {
            name: name.clone(),
            bytes: image.bytes,
        };
        write(&mut *to, &message)?;
        let mut file = File::open(images.folder.join(name))?;
        let mut left = image.bytes;
        while left > 0 {
            // In parts, so that it is seen that it goes on.
            let part = io::copy(&mut (&mut file).take(left.min(1 << 20)), &mut *to)?;
            if part == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= part;
            sent.fetch_add(part, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Hands on what B says.
fn listen(stdout: ChildStdout, sender: &Sender<Result<ToSource, String>>) {
    let mut stdout = BufReader::new(stdout);
    while let Some(message) = read(&mut stdout).transpose() {
        let is_wrong = message.is_err();
        if sender.send(message).is_err() || is_wrong {
            return;
        }
    }
}

/// Tells what is written to the standard error stream at B, and by ssh.
fn relay(stderr: impl Read, host: &str) {
    let mut stderr = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut stderr).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(length) if length > 0 => {}
            _ => return,
        }
        let line = String::from_utf8_lossy(&line);
        log::tell(&format!("{host}: {}", printable(line.trim_end())));
    }
}
