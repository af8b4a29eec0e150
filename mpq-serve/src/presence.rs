//! What a server leaves behind for those who look for it, wherever it is: its process id, and what it needs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::args::Serve;
use crate::checkpoint::control::Control;
use crate::checkpoint::namespace;
use crate::checkpoint::notes::Settings;
use crate::checkpoint::process::Identity;
use crate::error::{At, Error};

/// Says which process this is.
///
/// # Errors
/// Those of the file system.
pub(crate) fn announce(control: &Control) -> Result<(), Error> {
    let pid = std::process::id() as i32;
    control.write(&Identity::of(pid).at("/proc")?)
}

/// Has the process id written where the operator wants it.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write_pid_file(options: &Serve) -> Result<(), Error> {
    match &options.pid_file {
        Some(file) => fs::write(file, format!("{}\n", namespace::own_id())).at(file),
        None => Ok(()),
    }
}

/// Leaves a note of what the server needs wherever it is.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write_settings(control: &Control, options: &Serve) -> Result<(), Error> {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    control.write(&Settings {
        root: options.root().and_then(absolute),
        folders: folders(options),
        images: options.images.as_deref().and_then(absolute),
        moves_in_process: options.move_in_process.is_some(),
        is_at_several: options.listen.len() > 1,
    })
}

/// The folders that the server is in, and writes files to.
pub(crate) fn folders(options: &Serve) -> Vec<PathBuf> {
    let files = [&options.pid_file, &options.log_file, &options.access_log];
    let is_file = |file: &&PathBuf| file.as_os_str() != "-";
    let files = files.into_iter().flatten().filter(is_file);
    let absolute = |path: &Path| std::path::absolute(path).ok();
    let around = files.filter_map(|file| Some(absolute(file)?.parent()?.to_owned()));
    std::env::current_dir().into_iter().chain(around).collect()
}
