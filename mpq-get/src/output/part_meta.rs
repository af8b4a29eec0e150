//! The record beside a `.part` file, by which a later run knows what that file is of.
//!
//! It is one JSON object in `FILE.part.meta`. It is there or not, and never in parts: it is written under another name
//! first.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::names;
use crate::http::resume::{Partial, Restart, Validator};

/// What a `.part` file is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartMeta {
    /// The URL asked for.
    url: String,
    /// The version, as `If-Range` names it. Without it nothing can be added to the part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    if_range: Option<String>,
    /// Length of the whole body in bytes, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
}

impl PartMeta {
    /// The record of a body from `url`.
    pub fn of(url: &str, partial: &Partial) -> PartMeta {
        let version = partial.version.as_ref().ok();
        PartMeta {
            url: url.to_owned(),
            if_range: version.map(ToString::to_string),
            length: partial.length,
        }
    }

    /// Writes it beside `part`; with none, removes what is there.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn store(record: Option<&PartMeta>, part: &Path) -> io::Result<()> {
        let path = names::meta(part);
        let Some(record) = record else {
            return remove(&path);
        };
        let new = names::new_meta(part);
        // An earlier run may have ended just here; and what somebody has put there is not written to.
        remove(&new)?;
        File::create_new(&new)?.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(new, path)
    }

    fn version(&self) -> Result<Validator, Restart> {
        let if_range = self.if_range.as_deref().ok_or(Restart::NoValidator)?;
        Validator::parse(if_range).ok_or(Restart::NoRecord)
    }

    fn load(part: &Path) -> Option<PartMeta> {
        serde_json::from_slice(&fs::read(names::meta(part)).ok()?).ok()
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a later run may go on with `part`.
pub(super) fn is_resumable(part: &Path) -> bool {
    PartMeta::load(part).is_some_and(|record| record.version().is_ok())
}

/// What an earlier run has left at `part` of what `url` names.
pub(super) fn partial(part: &Path, url: &str) -> Partial {
    let bytes = part.metadata().map_or(0, |known| known.len());
    let record = PartMeta::load(part);
    let version = match &record {
        None => Err(Restart::NoRecord),
        Some(record) if record.url != url => Err(Restart::OtherUrl(record.url.clone())),
        Some(record) => record.version(),
    };
    let length = match &version {
        Ok(_) => record.and_then(|record| record.length),
        Err(_) => None,
    };
    Partial {
        bytes,
        length,
        version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://localhost/a";

    fn version() -> Partial {
        Partial {
            bytes: 0,
            length: Some(10),
            version: Ok(Validator::parse("\"v\"").unwrap()),
        }
    }

    #[test]
    fn a_record_is_found_again_by_its_url() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("a.part");
        assert_eq!(partial(&part, URL).bytes, 0);
        fs::write(&part, "abc").unwrap();
        PartMeta::store(Some(&PartMeta::of(URL, &version())), &part).unwrap();
        assert!(is_resumable(&part));
        let text = fs::read_to_string(folder.path().join("a.part.meta")).unwrap();
        let expected = r#"{"url":"https://localhost/a","if_range":"\"v\"","length":10}"#;
        assert_eq!(text, expected);
        let found = partial(&part, URL);
        assert_eq!(found.bytes, 3);
        assert_eq!(
            (found.length, &found.version),
            (Some(10), &version().version)
        );
        let other = partial(&part, "https://localhost/b");
        assert_eq!(other.version, Err(Restart::OtherUrl(URL.to_owned())));
        assert_eq!((other.bytes, other.length), (3, None));
    }

    #[test]
    fn what_is_no_record_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("a.part");
        fs::write(&part, "abc").unwrap();
        assert_eq!(partial(&part, URL).version, Err(Restart::NoRecord));
        for text in [
            "",
            "{}",
            r#"{"url":"https://localhost/a","if_range":"W/\"v\""}"#,
            r#"{"url":"https://localhost/a","if_range":"\"v\"","length":-1}"#,
        ] {
            fs::write(names::meta(&part), text).unwrap();
            assert_eq!(
                partial(&part, URL).version,
                Err(Restart::NoRecord),
                "{text}"
            );
        }
    }

    #[test]
    fn a_body_without_a_version_is_known_and_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("a.part");
        fs::write(&part, "abc").unwrap();
        PartMeta::store(Some(&PartMeta::of(URL, &Partial::default())), &part).unwrap();
        assert!(!is_resumable(&part));
        assert_eq!(partial(&part, URL).version, Err(Restart::NoValidator));
        PartMeta::store(None, &part).unwrap();
        PartMeta::store(None, &part).unwrap();
        assert!(!names::meta(&part).exists());
    }

    #[test]
    fn what_is_in_the_way_of_a_record_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("precious"), "mine").unwrap();
        for name in ["a.part.meta", "a.part.meta.new"] {
            std::os::unix::fs::symlink("precious", path(name)).unwrap();
        }
        PartMeta::store(Some(&PartMeta::of(URL, &version())), &path("a.part")).unwrap();
        assert!(is_resumable(&path("a.part")));
        assert_eq!(fs::read(path("precious")).unwrap(), b"mine");
    }
}
