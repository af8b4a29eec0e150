//! A server at A with a download under way, to which something happens, and what is seen then.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use mpq_core::client::{ClientEvent, MigrationEvent};
use mpq_lab::arms::mpq_get::{DownloadEvent, Entry, Summary};
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::system::host::built;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::operated::{LIMIT, Operated, copy, printed, wait_until};
use crate::table::Seen;
use crate::watch::Watch;

/// What [`Operated`] serves as `/random`.
const CONTENT: Content = Content {
    size: 1_000_000,
    seed: 0,
};
/// So that it takes 5.3 s.
const RATE: [&str; 2] = ["--limit-rate", "1500k"];
/// A small file beside it.
const HELLO: &str = "hello\n";
/// How long a client waits for a server that moves, and for one that is silent, seconds.
const IMPATIENT: [&str; 4] = ["--migration-timeout", "3", "--idle-timeout", "2"];
/// For the end of the download: between two attempts there may be half a minute.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(60);

/// Who serves, or why nobody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serving {
    A,
    B,
    /// Another server, started in place of the one that has ended.
    AnotherAtA,
    AnotherAtB,
    /// The server is in its images, which can be restored.
    Dumped,
    /// Nobody can know whether it has run.
    Spent,
    ToldToLeave,
    Killed,
    ImagesLost,
}

impl Serving {
    fn text(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
            Self::AnotherAtA => "another at A",
            Self::AnotherAtB => "another at B",
            Self::Dumped => "nobody: dumped",
            Self::Spent => "nobody: the images are spent",
            Self::ToldToLeave => "nobody: told to leave",
            Self::Killed => "nobody: killed",
            Self::ImagesLost => "nobody: the images are lost",
        }
    }

    /// Which of A and B.
    fn place(self) -> Option<usize> {
        match self {
            Self::A | Self::AnotherAtA => Some(0),
            Self::B | Self::AnotherAtB => Some(1),
            _ => None,
        }
    }
}

pub(crate) struct Trial {
    pub(crate) operated: Operated,
    pub(crate) download: Download,
    watch: Watch,
    code: String,
    says: String,
    serving: Vec<Serving>,
    /// Why the server has ended, if it was not dumped.
    end: Option<Serving>,
    /// Another one runs in its place.
    is_another: bool,
    site: TempDir,
    /// Where copies of images are.
    elsewhere: TempDir,
}

impl Trial {
    pub(crate) fn start(criu: &Path, options: &[&str]) -> Self {
        Self::start_as(&built("mpq-serve").unwrap(), criu, options, &[])
    }

    /// With a client that soon looks for another server.
    pub(crate) fn start_impatient(criu: &Path, options: &[&str]) -> Self {
        Self::start_as(&built("mpq-serve").unwrap(), criu, options, &IMPATIENT)
    }

    /// With this program.
    pub(crate) fn start_program(program: &Path, criu: &Path) -> Self {
        Self::start_as(program, criu, &[], &[])
    }

    fn start_as(program: &Path, criu: &Path, options: &[&str], patience: &[&str]) -> Self {
        let site = tempfile::tempdir().unwrap();
        fs::write(site.path().join("hello"), HELLO).unwrap();
        let folder = [site.path().to_str().unwrap()];
        let options = [&RATE[..], options, &folder].concat();
        let operated = Operated::start_as(program, criu, &options);
        let (a, b) = (operated.address.clone(), operated.target("127.0.0.2"));
        let watch = Watch::start([a, b].map(|place| place.parse().unwrap()));
        let download = Download::start(&operated, patience);
        download.wait_for("its first bytes", |event| {
            matches!(event, DownloadEvent::Progress { bytes: 1.., .. })
        });
        Self {
            operated,
            download,
            watch,
            code: "–".to_owned(),
            says: String::new(),
            serving: Vec::new(),
            end: None,
            is_another: false,
            site,
            elsewhere: tempfile::tempdir_in("/dev/shm").unwrap(),
        }
    }

    /// What the operator does first.
    pub(crate) fn checkpoint(&mut self) -> Command {
        self.download.assert_running();
        self.operated.checkpoint(&self.operated.images())
    }

    /// The images of the server, once it is dumped.
    pub(crate) fn dump(&mut self) -> PathBuf {
        let output = self.checkpoint().output().unwrap();
        self.operated.server.wait().unwrap();
        self.download.assert_running();
        printed(&output)
    }

    /// A copy of these images, which are released.
    pub(crate) fn released_copy(&self, images: &Path) -> PathBuf {
        printed(&self.release(images, "10m"));
        self.copy(images)
    }

    pub(crate) fn copy(&self, images: &Path) -> PathBuf {
        copy(images, self.elsewhere.path())
    }

    pub(crate) fn release(&self, images: &Path, valid: &str) -> Output {
        let mut release = self
            .operated
            .command(&["release", "--for", valid, "--images"]);
        release.arg(images).output().unwrap()
    }

    /// Brings the server back, as it should be. Who serves is seen.
    pub(crate) fn restore(&mut self, images: &Path) {
        self.restore_with(images, &[]);
    }

    pub(crate) fn restore_with(&mut self, images: &Path, options: &[&str]) {
        let output = self.operated.restore_with(images, options);
        assert!(output.status.success(), "{output:?}");
        self.look();
    }

    /// Tries to. What comes of that is seen.
    pub(crate) fn restore_in_vain(&mut self, images: &Path, options: &[&str], says: &str) {
        let output = self.operated.restore_with(images, options);
        self.saw(&output, says);
    }

    /// Tells the server something at which it ends.
    pub(crate) fn end_by(&mut self, signal: Signal) {
        self.download.assert_running();
        self.expect(match signal {
            Signal::SIGKILL => Serving::Killed,
            _ => Serving::ToldToLeave,
        });
        kill(Pid::from_raw(self.operated.pid()), signal).unwrap();
    }

    /// The server ends otherwise than by being dumped.
    pub(crate) fn expect(&mut self, end: Serving) {
        self.end = Some(end);
    }

    /// Returns once its process has ended.
    pub(crate) fn wait_for_its_end(&mut self) {
        wait_until("its end", LIMIT, || {
            // Of which this is the parent, or not, after a restore.
            let _ = self.operated.server.try_wait();
            !self.is_there()
        });
        if self.operated.restored.take().is_some() {
            self.operated.assert_gone();
        }
    }

    /// Another server, in the place of one that has ended.
    pub(crate) fn start_another(&mut self, host: &str) {
        assert!(!self.is_there());
        let address = self.operated.target(host);
        let site = self.site.path().to_str().unwrap().to_owned();
        let options = [&RATE[..], &[site.as_str()]].concat();
        self.operated.start_anew(&address, &options);
        self.is_another = true;
        self.look();
    }

    /// What the command that has met the fault tells. Who serves is seen.
    pub(crate) fn saw(&mut self, output: &Output, says: &str) {
        self.heard(output, says);
        self.look();
    }

    /// The same, while nobody can serve.
    pub(crate) fn heard(&mut self, output: &Output, says: &str) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(says), "{says}: {output:?}");
        self.code = output
            .status
            .code()
            .map_or("–".to_owned(), |code| code.to_string());
        self.says = says.to_owned();
    }

    /// Who serves now: one, or nobody for a reason.
    pub(crate) fn look(&mut self) {
        let places = ["127.0.0.1", "127.0.0.2"].map(|host| self.answers(host));
        let serving = match (places, self.is_another) {
            ([true, true], _) => panic!("A and B serve both"),
            ([true, false], false) => Serving::A,
            ([true, false], true) => Serving::AnotherAtA,
            ([false, true], false) => Serving::B,
            ([false, true], true) => Serving::AnotherAtB,
            ([false, false], _) => self.why_nobody(),
        };
        if self.serving.last() != Some(&serving) {
            self.serving.push(serving);
        }
    }

    fn why_nobody(&self) -> Serving {
        assert!(
            !self.is_there(),
            "neither A nor B serves, and the server is there; its log:\n{}",
            self.operated.log()
        );
        let is_waiting = |folder: &PathBuf| {
            ["manifest.json", "token.json"]
                .iter()
                .all(|file| folder.join(file).exists())
        };
        let is_spent = |folder: &PathBuf| folder.join("token.spent").exists();
        let folders = self.folders();
        if folders.iter().any(is_waiting) && self.end.is_none() {
            Serving::Dumped
        } else if folders.iter().any(is_spent) && self.end.is_none() {
            Serving::Spent
        } else {
            self.end
                .expect("neither A nor B serves, and nobody has ended the server")
        }
    }

    /// Those that may have images.
    fn folders(&self) -> Vec<PathBuf> {
        let parents = [self.operated.images(), self.elsewhere.path().to_owned()];
        let entries = parents
            .iter()
            .flat_map(|parent| fs::read_dir(parent).unwrap().flatten());
        entries.map(|entry| entry.path()).collect()
    }

    /// The process of the server is there, and not only as a zombie.
    fn is_there(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.operated.pid()));
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| !rest.starts_with('Z'))
        })
    }

    /// Whether a new client gets a file there.
    pub(crate) fn answers(&self, host: &str) -> bool {
        let url = format!("https://{}/hello", self.operated.target(host));
        let output = get(["--retry", "0", "--connect-timeout", "5", &url])
            .output()
            .unwrap();
        match output.status.code() {
            Some(0) => {
                assert_eq!(output.stdout, HELLO.as_bytes());
                true
            }
            // Refused, and without an answer.
            Some(7 | 28) => false,
            _ => panic!("{output:?}"),
        }
    }

    /// What has been seen, once the download has come to its end.
    pub(crate) fn finish(mut self) -> Seen {
        let download = self.download.end();
        // Also afterwards.
        self.look();
        let last = *self.serving.last().unwrap();
        let is_over = last == Serving::ToldToLeave;
        assert!(is_over || last.place().is_some(), "{:?}", self.serving);

        let mut expected = vec![0];
        expected.extend(self.serving.iter().filter_map(|serving| serving.place()));
        expected.dedup();
        assert_eq!(
            self.watch.end(),
            expected,
            "who has answered: A is 0, B is 1"
        );
        let serving: Vec<_> = self.serving.iter().map(|serving| serving.text()).collect();
        Seen {
            code: self.code,
            says: self.says,
            serving: serving.join("; then "),
            download: download.to_owned(),
        }
    }
}

fn get<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut get = Command::new(built("mpq-get").unwrap());
    get.arg("--insecure").args(arguments).stdin(Stdio::null());
    get
}

/// A download under way.
pub(crate) struct Download {
    process: Child,
    events: PathBuf,
}

impl Download {
    fn start(operated: &Operated, patience: &[&str]) -> Self {
        let folder = operated.folder.path();
        let events = folder.join("events");
        let url = format!("https://{}/random", operated.address);
        let process = get(["--json", "--segments", "1", "--retry", "20", &url])
            .args(patience)
            .arg("--output")
            .arg(folder.join("download"))
            .stdout(File::create(&events).unwrap())
            .spawn()
            .unwrap();
        Self { process, events }
    }

    fn events(&self) -> Vec<DownloadEvent> {
        let text = fs::read_to_string(&self.events).unwrap();
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let entries = lines.map(|line| serde_json::from_str::<Entry>(line).unwrap());
        entries.map(|entry| entry.event).collect()
    }

    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&DownloadEvent) -> bool) {
        wait_until(what, LIMIT, || self.events().iter().any(&wanted));
    }

    /// It has heard of the move.
    pub(crate) fn wait_until_told(&self) {
        self.wait_for("the announcement", |event| {
            matches!(migration(event), Some(MigrationEvent::Announced { .. }))
        });
    }

    /// It goes on where the server is now.
    pub(crate) fn wait_until_moved(&self) {
        self.wait_for("the move", |event| {
            matches!(event, DownloadEvent::FirstByteAfterMove { .. })
        });
    }

    fn assert_running(&mut self) {
        let ended = self.process.try_wait().unwrap();
        assert_eq!(ended, None, "the download has ended too early");
    }

    pub(crate) fn tell(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// What has become of it. It is whole, and has received each byte once.
    fn end(&mut self) -> &'static str {
        let mut status = None;
        wait_until("the end of the download", DOWNLOAD_LIMIT, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        let events = self.events();
        let Some(DownloadEvent::Done(Summary {
            sha256,
            received,
            handshakes,
            ..
        })) = events.last()
        else {
            panic!("{status:?}: {events:#?}");
        };
        assert_eq!(*sha256, CONTENT.sha256());
        assert_eq!(*received, CONTENT.size, "{events:#?}");
        let has =
            |wanted: fn(&MigrationEvent) -> bool| events.iter().filter_map(migration).any(wanted);
        if *handshakes > 1 {
            "resumes"
        } else if has(|event| matches!(event, MigrationEvent::Moved { .. })) {
            "follows"
        } else if has(|event| matches!(event, MigrationEvent::Cancelled { .. })) {
            "goes on; the move is off"
        } else {
            assert!(!has(|event| matches!(
                event,
                MigrationEvent::Announced { .. }
            )));
            "goes on"
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn migration(event: &DownloadEvent) -> Option<&MigrationEvent> {
    match event {
        DownloadEvent::Connection(ClientEvent::Migration(event)) => Some(event),
        _ => None,
    }
}
