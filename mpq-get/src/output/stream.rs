//! What a body can be written to but in a file.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// A device or a named pipe, opened when it is first written to. That may take for ever: a pipe's reader is waited for.
#[derive(Debug)]
pub(super) struct OnDemand {
    path: PathBuf,
    file: Option<File>,
}

impl OnDemand {
    pub(super) fn new(path: PathBuf) -> OnDemand {
        OnDemand { path, file: None }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        match &mut self.file {
            Some(file) => Ok(file),
            none => Ok(none.insert(File::create(&self.path)?)),
        }
    }
}

impl Write for OnDemand {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file()?.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file()?.flush()
    }
}

/// Standard output that refuses binary data, told by its zero bytes.
pub(super) struct TextOnly;

/// It was binary data.
#[derive(Debug, thiserror::Error)]
#[error("not text")]
pub(super) struct NotText;

impl Write for TextOnly {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.contains(&0) {
            return Err(io::Error::other(NotText));
        }
        io::stdout().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_binary() {
        let error = TextOnly.write(b"a\0b").unwrap_err();
        assert!(error.get_ref().unwrap().is::<NotText>());
    }

    #[test]
    fn nothing_is_opened_before_something_is_written() {
        let mut stream = OnDemand::new("/none/at/all".into());
        assert_eq!(
            stream.write(b"a").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
