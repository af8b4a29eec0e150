//! A download of a file goes on at another host that has a copy, and at none that has another file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use common::{criu, privileged};
use mpq_lab::arms::mpq_get::{Download, DownloadEvent};
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::{Client, ServerA, ServerB};
use mpq_lab::system::host::built;
use mpq_serve::site::random::Random;

mod common;

/// Of which the file is made.
const CONTENT: Content = Content {
    size: 40_000_000,
    seed: 80,
};

fn write(path: &Path, content: &[u8], modified: SystemTime) -> Result<()> {
    fs::write(path, content)?;
    let file = File::options().write(true).open(path)?;
    Ok(file.set_modified(modified)?)
}

struct Served {
    testbed: Testbed,
    file: PathBuf,
    bytes: Vec<u8>,
    modified: SystemTime,
}

impl Served {
    async fn new(options: &[&str]) -> Result<Self> {
        let testbed = Testbed::new(&criu(), &Network::default())?;
        let root = testbed.scratch().join("root");
        fs::create_dir(&root)?;
        let file = root.join("file");
        let mut bytes = vec![0; CONTENT.size as usize];
        Random::new(CONTENT.size, CONTENT.seed).fill(0, &mut bytes);
        let modified = SystemTime::now() - Duration::from_secs(3600);
        write(&file, &bytes, modified)?;
        let configure = |command: &mut tokio::process::Command| {
            command.arg("--root").arg(&root).args(options);
        };
        testbed.serve(ServerA, CONTENT, configure).await?;
        Ok(Self {
            testbed,
            file,
            bytes,
            modified,
        })
    }

    async fn half_a_download(&self) -> Result<Download> {
        let mut command = self.testbed.topology().command(Client, built("mpq-get")?);
        command
            .args(["--insecure", "--retry", "0", "--idle-timeout", "5"])
            .args(["--interface", "eth0", "--interface", "eth1"])
            .arg("--output")
            .arg(self.testbed.scratch().join("download"))
            .arg(format!("https://{}/file", ServerA.server_address()));
        let mut download = Download::start(command)?;
        download.wait_for_bytes(CONTENT.size / 2).await?;
        Ok(download)
    }

    /// The server moves, and the file is another one meanwhile, as on another host.
    async fn moved(&self, becomes: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.testbed.checkpoint(ServerA, ServerB).await?;
        becomes(&self.file)?;
        self.testbed.restore(ServerB).await?;
        Ok(())
    }
}

#[tokio::test]
async fn a_copy_of_the_file_is_gone_on_with() {
    let Some(_alone) = privileged().await else {
        return;
    };
    for options in [&[][..], &["--etag", "content"]] {
        let served = Served::new(options).await.unwrap();
        let run = async {
            let download = served.half_a_download().await?;
            let copy = |file: &Path| {
                let new = file.with_extension("new");
                write(&new, &served.bytes, served.modified)?;
                Ok(fs::rename(&new, file)?)
            };
            served.moved(copy).await?;
            download.finish().await
        };
        let entries = run.await.with_context(|| served.testbed.logs()).unwrap();
        let DownloadEvent::Done(done) = &entries.last().unwrap().event else {
            panic!("{entries:?}");
        };
        assert_eq!(done.sha256, CONTENT.sha256());
        assert_eq!(done.handshakes, 1);
    }
}

#[tokio::test]
async fn another_file_is_not_and_one_that_was_removed_does_not_hinder_the_move() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // The same length and time do not help where the content counts.
    for (removed, options) in [(true, &[][..]), (false, &["--etag", "content"])] {
        let served = Served::new(options).await.unwrap();
        let run = async {
            if !removed {
                // The digest is known once somebody has asked for the file, and a moment later.
                served.half_a_download().await?.finish().await?;
            }
            let download = served.half_a_download().await?;
            if removed {
                fs::remove_file(&served.file)?;
            }
            let change = |file: &Path| match removed {
                true => Ok(()),
                false => {
                    let other = vec![7; CONTENT.size as usize];
                    write(file, &other, served.modified)
                }
            };
            served.moved(change).await?;
            download.end().await
        };
        let (status, entries) = run.await.with_context(|| served.testbed.logs()).unwrap();
        assert!(!status.success(), "{entries:?}");
        let log = served.testbed.logs();
        assert!(log.contains("cut off"), "{log}");
    }
}
