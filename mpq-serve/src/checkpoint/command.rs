//! `mpq-serve checkpoint`: tells a server to have itself dumped, and waits until it is.

use std::fs;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::control::{Control, LockOf, wait_for};
use super::criu;
use super::for_user::RootsHelper;
use super::images::{self, Images};
use super::notes::{
    CheckpointRequest, Done, Failed, Forwards, Manifest, RequestId, Serving, Settings, Unpark,
    Waiting,
};
use super::owner::Owner;
use super::process::{Identity, Process, is_held};
use super::sealing::{self, KeptKey};
use super::{namespace, say, trust};
use crate::error::{At, Error, Failure};
use crate::log;

/// How long a server may take to be dumped.
const DUMP_LIMIT: Duration = Duration::from_secs(3600);
/// How long the helper of a checkpoint that has failed may still be there.
const ENDING_LIMIT: Duration = Duration::from_millis(500);
/// How long a parked server may take to hear that it is to go on, and then to do so.
const HEARING_LIMIT: Duration = Duration::from_secs(2);
const UNPARKING_LIMIT: Duration = Duration::from_secs(10);
/// How long CRIU may hold the server until the operator hears of it,
const HELD_LIMIT: Duration = Duration::from_secs(60);
/// and how often it is looked.
const HELD_INTERVAL: Duration = Duration::from_secs(1);
/// The exit code for a server that goes on.
const NOT_DUMPED: u8 = 8;
/// How long CRIU and the helper may take to end once the server has.
const LAST_STEPS_LIMIT: Duration = Duration::from_secs(30);

/// Tells a server to have itself dumped, and returns when the images are complete and the server has ended. Prints
/// where they are. They are sealed if there is a file for the key; of `-`, the standard output, that is all.
///
/// # Errors
/// There is no such server, or it moves already, or it was not dumped and goes on; or it was, and the images are not
/// sealed.
pub fn run(
    pid: Option<i32>,
    pid_file: Option<PathBuf>,
    images: Option<PathBuf>,
    migrate_to: Vec<SocketAddr>,
    forward: bool,
    seal: Option<&Path>,
) -> Result<(), Error> {
    let server = RunningServer::find(pid, pid_file.as_deref())?;
    let Some(key_file) = seal else {
        let dumped = server.checkpoint(images, migrate_to, forward)?;
        say(&dumped.images.display());
        return Ok(());
    };
    let parent = server.parent_of_images(images)?;
    sealing::check(&parent, key_file, images::needed(&server.pid.to_string())?)?;
    let key = KeptKey::create(key_file)?;
    let dumped = server.checkpoint(Some(parent), migrate_to, forward);
    let folder = dumped.inspect_err(|_| key.remove())?.images;
    let sealed = Images::open(&folder).and_then(|images| sealing::seal(&images, key.key()));
    sealed.map_err(|error| {
        key.remove();
        Error::Unsealed(folder.clone(), error.to_string())
    })?;
    match key.is_printed() {
        true => log::tell(&format!("the sealed images are in {}", folder.display())),
        false => say(&folder.display()),
    }
    Ok(())
}

/// What is left of a server that was dumped.
#[derive(Debug)]
pub struct Dumped {
    /// The folder of its images.
    pub images: PathBuf,
    /// Who forwards for its clients.
    pub forwarder: Option<Forwards>,
}

/// A server of this host, and never another process.
#[derive(Debug)]
pub struct RunningServer {
    /// Its process id.
    pub pid: i32,
    /// Whose it is, if not this user's.
    pub owner: Option<Owner>,
    control: Control,
    process: Process,
}

impl RunningServer {
    /// The one with this process id, or with that of the file.
    ///
    /// # Errors
    /// There is no such server.
    pub fn find(pid: Option<i32>, pid_file: Option<&Path>) -> Result<Self, Error> {
        let pid = match (pid, pid_file) {
            (Some(pid), _) => pid,
            (None, Some(file)) => read_pid(file)?,
            (None, None) => unreachable!("clap wants one of them"),
        };
        let (owner, control, process) = find_server(pid, pid_file)?;
        if let Some(file) = pid_file {
            // Or somebody has it name the server of somebody else.
            trust::way(file, owner.map_or_else(trust::me, |owner| owner.uid))?;
        }
        Ok(Self {
            pid,
            owner,
            control,
            process,
        })
    }

    /// The folder that those of its user's servers are in through which they are talked to.
    pub fn controls(&self) -> Option<&Path> {
        self.control.path().parent()
    }

    /// Through which it is talked to.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Has it look for another process that waits to take over.
    ///
    /// # Errors
    /// It has ended.
    pub fn tell_to_hand_over(&self) -> io::Result<()> {
        self.process.tell_to_hand_over()
    }

    /// What it needs wherever it is, if it says so.
    pub fn settings(&self) -> Option<Settings> {
        self.control.read()
    }

    /// The folder in which a folder for its images is made, if this one is not given.
    fn parent_of_images(&self, given: Option<PathBuf>) -> Result<PathBuf, Error> {
        // What an ordinary user has said does not count for root.
        let own = || self.settings().filter(|_| self.owner.is_none())?.images;
        let parent = given.or_else(own).unwrap_or_else(Control::images);
        std::path::absolute(&parent).at(parent)
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Has it dumped, and returns when the images are complete and the server has ended. With `forward`, clients that
    /// cannot follow are kept.
    ///
    /// # Errors
    /// It moves already, or it was not dumped and goes on.
    pub fn checkpoint(
        &self,
        images: Option<PathBuf>,
        migrate_to: Vec<SocketAddr>,
        forward: bool,
    ) -> Result<Dumped, Error> {
        let Self {
            pid,
            owner,
            control,
            process,
        } = self;
        let images = images.map(std::path::absolute).transpose().at(".")?;
        let _only_one = self.lock()?;
        let is_path = |criu: &PathBuf| criu.components().count() > 1;
        let criu = criu::named_by_environment().map(|criu| match is_path(&criu) {
            true => std::path::absolute(&criu).unwrap_or(criu),
            false => criu,
        });
        let id = RequestId::new();
        let roots = |owner| RootsHelper::start(control, *pid, owner, images.clone(), &id);
        let helper = owner.map(roots).transpose()?;
        let request = CheckpointRequest {
            id: id.clone(),
            images,
            migrate_to,
            criu,
            forward,
            dumper: helper.as_ref().map(RootsHelper::pid),
            park: None,
        };
        let mut held = Held::default();
        let result = self.ask(&request, || {
            held.tell(*pid);
            outcome(control, process, &id)
        });
        let result = match helper {
            Some(helper) => of_another_user(result, helper, process),
            None => result,
        };
        let forwarder = control.read_on::<Forwards>(&id).map(known_here);
        // Not before root's helper has heard it, too.
        control.clear_on::<Failed>(&id);
        control.clear_on::<Done>(&id);
        control.clear_on::<Forwards>(&id);
        let images = result?;
        if let Some(Forwards { process, server }) = &forwarder {
            let pid = process.pid;
            log::tell(&format!(
                "process {pid} forwards to {server}, until it has been silent for a minute to clients that cannot follow"
            ));
        }
        Ok(Dumped { images, forwarder })
    }

    /// Has it stand still for whoever dumps it, for so long at the most, and returns when it does.
    ///
    /// # Errors
    /// It moves already, or it does not park and goes on.
    pub fn park(&self, migrate_to: Vec<SocketAddr>, limit: Duration) -> Result<(), Error> {
        let _only_one = self.lock()?;
        let id = RequestId::new();
        let request = CheckpointRequest {
            id: id.clone(),
            migrate_to,
            park: Some(limit),
            ..CheckpointRequest::default()
        };
        let parked = self.ask(&request, || {
            let parked = self.control.read_on::<Manifest>(&id).map(|_| Ok(()));
            let ended = self.process.has_ended();
            failed(&self.control, &id)
                .or(parked)
                .or(ended.then_some(Err(Error::Died)))
        });
        self.control.clear_on::<Failed>(&id);
        parked
    }

    /// Has it go on where it was, if it is parked for somebody else, and returns when it serves.
    ///
    /// # Errors
    /// It is not parked, or does not go on.
    pub fn unpark(&self) -> Result<(), Error> {
        let _only_one = self.lock()?;
        self.control.clear::<Serving>();
        self.control.write(&Unpark {})?;
        let is_heard = || self.control.read::<Unpark>().is_none().then_some(());
        if wait_for(HEARING_LIMIT, is_heard).is_none() {
            self.control.clear::<Unpark>();
            return Err(Error::Dump("it is not parked".to_owned()));
        }
        wait_for(UNPARKING_LIMIT, || self.control.read::<Serving>())
            .map(drop)
            .ok_or_else(|| Error::Dump("it does not listen again".to_owned()))
    }

    /// Has nobody else ask it for a move.
    ///
    /// # Errors
    /// Another command has it.
    pub fn lock(&self) -> Result<File, Error> {
        let lock = lock(&self.control, LockOf::Command)?;
        // Of a checkpoint by signal, or whose command was ended. One that has just failed takes a moment to end.
        let helper = || match self::lock(&self.control, LockOf::Helper) {
            Err(Error::Busy) => None,
            result => Some(result),
        };
        drop(wait_for(ENDING_LIMIT, helper).unwrap_or(Err(Error::Busy))?);
        Ok(lock)
    }

    /// Asks it for a move, and waits until `outcome` knows what comes of that.
    fn ask<T>(
        &self,
        request: &CheckpointRequest,
        mut outcome: impl FnMut() -> Option<Result<T, Error>>,
    ) -> Result<T, Error> {
        let Self { control, pid, .. } = self;
        control.write(request)?;
        let told = self.process.tell_to_move();
        let result = told.map_err(|_| Error::NoServer(*pid)).and_then(|()| {
            let outcome = || {
                say_if_waiting(control, &request.id);
                outcome()
            };
            wait_for(DUMP_LIMIT, outcome)
                .unwrap_or_else(|| Err(Error::Dump("it has not begun in an hour".to_owned())))
        });
        control.clear::<CheckpointRequest>();
        result
    }
}

/// Whether CRIU has held a server for longer than it should take.
struct Held {
    since: Instant,
    looked: Instant,
    is_told: bool,
}

impl Default for Held {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            looked: now,
            is_told: false,
        }
    }
}

impl Held {
    /// Says so, once.
    fn tell(&mut self, pid: i32) {
        if self.is_told || self.looked.elapsed() < HELD_INTERVAL {
            return;
        }
        self.looked = Instant::now();
        if !is_held(pid) {
            self.since = self.looked;
        }
        if self.since.elapsed() > HELD_LIMIT {
            self.is_told = true;
            log::tell(
                "CRIU has held the server for a minute; it is not ended, since the server might not survive that. Look \
                 for what it waits for, such as a disk",
            );
        }
    }
}

/// How it ended with the server of another user, who may have anything said here.
fn of_another_user(
    said: Result<PathBuf, Error>,
    helper: RootsHelper,
    server: &Process,
) -> Result<PathBuf, Error> {
    let failed = match said {
        // None is a success.
        Err(Error::Told(Failure { message, code: 0 })) => Error::Told(Failure {
            message,
            code: NOT_DUMPED,
        }),
        Err(error) => error,
        Ok(_) => Error::Died,
    };
    if !server.has_ended() {
        helper.give_up();
        return Err(failed);
    }
    helper.images()?.ok_or(failed)
}

/// With the process as it is known here, which is another id where the server was in a namespace.
fn known_here(forwards: Forwards) -> Forwards {
    let process = namespace::find(&forwards.process).unwrap_or(forwards.process);
    Forwards {
        process,
        ..forwards
    }
}

fn say_if_waiting(control: &Control, id: &RequestId) {
    if control.read_on::<Waiting>(id).is_some() {
        control.clear_on::<Waiting>(id);
        log::tell(
            "the move begins once the clients of the last one have come, in 30 s at the most",
        );
    }
}

/// Why there is no move, if the server has said that.
fn failed<T>(control: &Control, id: &RequestId) -> Option<Result<T, Error>> {
    let failed = control.read_on::<Failed>(id)?;
    Some(Err(Error::Told(failed.failure)))
}

/// How the request for a checkpoint ended, if it has.
fn outcome(control: &Control, server: &Process, id: &RequestId) -> Option<Result<PathBuf, Error>> {
    let failed = || failed(control, id);
    let ended = server.has_ended();
    if let Some(failed) = failed() {
        return Some(failed);
    }
    if !ended {
        return None;
    }
    // It was dumped, or died; what runs CRIU has the last word.
    let has_ended = || control.try_lock(LockOf::Helper).is_ok() || !control.exists();
    wait_for(LAST_STEPS_LIMIT, || has_ended().then_some(()));
    let done = || control.read_on::<Done>(id).map(|done| Ok(done.images));
    let died = || Err(Error::Died);
    Some(failed().or_else(done).unwrap_or_else(died))
}

fn lock(control: &Control, of: LockOf) -> Result<File, Error> {
    control.try_lock(of).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Error::Busy,
        _ => Error::Io(control.path().to_owned(), error),
    })
}

/// The server that has this process id, if the process that has it now is that server.
fn find_server(
    pid: i32,
    pid_file: Option<&Path>,
) -> Result<(Option<Owner>, Control, Process), Error> {
    // Before it is looked at, so that it cannot become another one.
    let process = Process::open(pid);
    let own = Control::of(pid);
    // Only root can do anything with those of others.
    let is_root = trust::me() == 0;
    let owner = Owner::of(pid).ok().flatten();
    let owner = owner.filter(|_| is_root && !own.exists());
    let control = match owner {
        Some(owner) => Control::of_user(pid, owner).at("/proc")?,
        None => own,
    };
    if !control.exists() {
        return Err(not_there(
            pid,
            pid_file,
            match owner {
                Some(_) => "it is no mpq-serve of this version",
                None => "no mpq-serve of this user has that process id",
            },
        ));
    }
    control.check()?;
    let Some(server) = control.read::<Identity>() else {
        return Err(not_there(
            pid,
            pid_file,
            "it was not started by this version",
        ));
    };
    let now = Identity::of(pid);
    let reason = match (process, now) {
        (Ok(process), Ok(now)) if now == server => return Ok((owner, control, process)),
        (Ok(_), Ok(_)) => "that server has ended, and its process id is another program's now",
        _ => "that server has ended",
    };
    control.remove_if_dead();
    Err(not_there(pid, pid_file, reason))
}

fn not_there(pid: i32, pid_file: Option<&Path>, reason: &str) -> Error {
    match pid_file {
        Some(file) => Error::PidFile(file.to_owned(), format!("it says {pid}, and {reason}")),
        None => Error::Stale(pid, reason.to_owned()),
    }
}

fn read_pid(file: &Path) -> Result<i32, Error> {
    let wrong = |reason: String| Error::PidFile(file.to_owned(), reason);
    let text = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(wrong(format!("it says {:?}", text.trim()))),
    }
}
