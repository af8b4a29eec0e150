//! How the engines are spoken to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::options::MoveContainerOptions;
use crate::between_hosts::ssh::quoted;
use crate::error::Error;

/// So long the server stands still at the most, if this process ends and leaves it so.
const PARKED_AT_MOST: &str = "10m";

/// What a shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script(pub String);

/// A container with a server in it.
#[derive(Debug)]
pub struct Container {
    engine: Vec<String>,
    name: String,
    program: String,
    dialect: Dialect,
}

/// What the engine understands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Dialect {
    /// The command line that runc has, and crun; with the bundle.
    Runc(PathBuf),
    Podman,
}

impl Container {
    /// The one that the operator names.
    ///
    /// # Errors
    /// The engine is none that is known, or needs a bundle.
    pub fn new(options: &MoveContainerOptions) -> Result<Self, Error> {
        let engine: Vec<String> = options
            .engine
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let program = engine.first().map(Path::new).and_then(Path::file_name);
        let dialect = match (program.and_then(|name| name.to_str()), &options.bundle) {
            (Some("podman"), _) => Dialect::Podman,
            (Some("runc" | "crun"), Some(bundle)) => Dialect::Runc(bundle.clone()),
            (Some("runc" | "crun"), None) => {
                return Err(Error::InTheWay("no --bundle is".to_owned()));
            }
            _ => {
                let reason = "an --engine that is neither podman nor runc nor crun is";
                return Err(Error::InTheWay(reason.to_owned()));
            }
        };
        Ok(Self {
            engine,
            name: options.name.clone(),
            program: options.program.clone(),
            dialect,
        })
    }

    /// Fails unless the server's program can be run in it.
    pub fn version_of_server(&self) -> Script {
        self.exec(&["--version"])
    }

    /// Fails unless there is such an engine.
    pub fn version_of_engine(&self) -> Script {
        self.engine(&["--version"])
    }

    /// Fails unless there is such a container.
    pub fn is_there(&self) -> Script {
        match self.dialect {
            Dialect::Runc(_) => self.engine(&["state", &self.name]),
            Dialect::Podman => self.engine(&["container", "exists", &self.name]),
        }
    }

    /// Fails unless the bundle is there, if one is needed.
    pub fn look_for_bundle(&self) -> Option<Script> {
        match &self.dialect {
            Dialect::Runc(bundle) => {
                Some(words(["test", "-f", &path(&bundle.join("config.json"))]))
            }
            Dialect::Podman => None,
        }
    }

    /// Has the server tell its clients, and stand still.
    pub fn park(&self, address: SocketAddr) -> Script {
        let address = address.to_string();
        let park = ["park", "--pid", "1", "--migrate-to", &address];
        self.exec(&[&park[..], &["--limit", PARKED_AT_MOST]].concat())
    }

    /// Has it go on.
    pub fn unpark(&self) -> Script {
        self.exec(&["unpark", "--pid", "1"])
    }

    /// Writes the container into this folder, and ends it.
    pub fn checkpoint(&self, folder: &Path) -> Script {
        match self.dialect {
            Dialect::Runc(_) => {
                let [images, work] = Self::folders(folder);
                let to = ["checkpoint", "--image-path", &images, "--work-path", &work];
                self.engine(&[&to[..], &[&self.name]].concat())
            }
            Dialect::Podman => {
                let file = Self::archive(folder);
                let to = [
                    "container",
                    "checkpoint",
                    "--export",
                    &file,
                    "--compress",
                    "none",
                ];
                self.engine(&[&to[..], &[&self.name]].concat())
            }
        }
    }

    /// Has it run again, from this folder.
    pub fn restore(&self, folder: &Path) -> Script {
        match &self.dialect {
            Dialect::Runc(bundle) => {
                let [images, work] = Self::folders(folder);
                let log = format!("{work}.log");
                let bundle = path(bundle);
                let from = ["--log", &log, "restore", "--detach", "--bundle", &bundle];
                let from = [&from[..], &["--image-path", &images, "--work-path", &work]].concat();
                let Script(restore) = self.engine(&[&from[..], &[&self.name]].concat());
                let Script(log) = words(["tail", "-n", "1", &log]);
                // The container keeps the streams of this command.
                Script(format!(
                    "{restore} </dev/null >/dev/null 2>&1 || {{ {log} >&2; exit 1; }}"
                ))
            }
            Dialect::Podman => {
                let file = Self::archive(folder);
                self.engine(&["container", "restore", "--import", &file])
            }
        }
    }

    /// The same at the host where it was checkpointed.
    pub fn back(&self, folder: &Path) -> Vec<Script> {
        let restore = self.restore(folder);
        match self.dialect {
            Dialect::Runc(_) => vec![restore],
            // Its name is still taken.
            Dialect::Podman => vec![self.engine(&["rm", &self.name]), restore],
        }
    }

    /// Removes the folder, which holds keys.
    pub fn wipe(folder: &Path) -> Script {
        words(["rm", "-rf", &path(folder)])
    }

    fn exec(&self, arguments: &[&str]) -> Script {
        let program = ["exec", &self.name, &self.program];
        self.engine(&[&program[..], arguments].concat())
    }

    fn engine(&self, arguments: &[&str]) -> Script {
        let engine = self.engine.iter().map(String::as_str);
        words(engine.chain(arguments.iter().copied()))
    }

    fn folders(folder: &Path) -> [String; 2] {
        ["images", "work"].map(|name| path(&folder.join(name)))
    }

    fn archive(folder: &Path) -> String {
        path(&folder.join("container.tar"))
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// These words, as a shell takes them.
pub fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Script {
    let words: Vec<_> = words.into_iter().map(quoted).collect();
    Script(words.join(" "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: MoveContainerOptions,
    }

    fn container(engine: &[&str]) -> Result<Container, Error> {
        let line = ["", "s 1", "--to", "B", "--address", "10.1.0.3:4433"];
        let line = [&line[..], engine].concat();
        Container::new(&Line::parse_from(line).options)
    }

    #[test]
    fn each_engine_is_spoken_to_in_its_words() {
        let folder = Path::new("/run/i");
        let podman = container(&[]).unwrap();
        let address = "10.1.0.3:4433".parse().unwrap();
        for (script, expected) in [
            (
                podman.park(address),
                "podman exec 's 1' mpq-serve park --pid 1 --migrate-to '10.1.0.3:4433' --limit 10m",
            ),
            (
                podman.checkpoint(folder),
                "podman container checkpoint --export /run/i/container.tar --compress none 's 1'",
            ),
            (podman.back(folder)[0].clone(), "podman rm 's 1'"),
        ] {
            assert_eq!(script.0, expected);
        }
        let engine = ["--engine", "/opt/runc --root /r", "--bundle", "/b"];
        let runc = container(&engine).unwrap();
        assert_eq!(runc.is_there().0, "/opt/runc --root /r state 's 1'");
        let back = runc.back(folder);
        assert_eq!(back, [runc.restore(folder)]);
        assert!(back[0].0.contains("restore --detach --bundle /b"));
    }

    #[test]
    fn an_engine_that_is_not_known_or_has_no_bundle_is_in_the_way() {
        for engine in ["docker", "runc", "crun"] {
            let refused = container(&["--engine", engine]);
            assert!(matches!(refused, Err(Error::InTheWay(_))), "{engine}");
        }
    }
}
