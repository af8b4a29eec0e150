//! The record beside a `.part` file, by which a later run knows what that file is of.
//!
//! It is one JSON object in `FILE.part.meta`. Only a body whose version can be told from others has
//! one: without it nothing could be added to the `.part`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::http::resume::{Partial, Restart, Validator};

/// What a `.part` file is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartMeta {
    /// The URL asked for.
    url: String,
    /// The version, as `If-Range` names it.
    if_range: String,
    /// Length of the whole body in bytes, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
}

impl PartMeta {
    /// The record of a body from `url`; none if its version cannot be told from others.
    pub fn of(url: &str, partial: &Partial) -> Option<PartMeta> {
        let version = partial.version.as_ref().ok()?;
        Some(PartMeta {
            url: url.to_owned(),
            if_range: version.to_string(),
            length: partial.length,
        })
    }

    /// Its path: beside `part`.
    pub fn path(part: &Path) -> PathBuf {
        let mut name = part.as_os_str().to_owned();
        name.push(".meta");
        name.into()
    }

    /// Writes it beside `part`; with none, removes what is there.
    ///
    /// # Errors
    /// What the system says.
    pub fn store(record: Option<&PartMeta>, part: &Path) -> io::Result<()> {
        let path = PartMeta::path(part);
        match record {
            Some(record) => std::fs::write(path, serde_json::to_vec(record)?),
            None => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn load(part: &Path) -> Option<PartMeta> {
        serde_json::from_slice(&std::fs::read(PartMeta::path(part)).ok()?).ok()
    }
}

/// What an earlier run has left at `part` of what `url` names.
pub fn partial(part: &Path, url: &str) -> Partial {
    let bytes = part.metadata().map_or(0, |known| known.len());
    let record = PartMeta::load(part);
    let version = match &record {
        None => Err(Restart::NoRecord),
        Some(record) if record.url != url => Err(Restart::OtherUrl(record.url.clone())),
        Some(record) => Validator::parse(&record.if_range).ok_or(Restart::NoRecord),
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
    use std::fs;

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
        PartMeta::store(PartMeta::of(URL, &version()).as_ref(), &part).unwrap();
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
            fs::write(PartMeta::path(&part), text).unwrap();
            assert_eq!(
                partial(&part, URL).version,
                Err(Restart::NoRecord),
                "{text}"
            );
        }
    }

    #[test]
    fn a_body_without_a_version_has_no_record() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("a.part");
        assert_eq!(PartMeta::of(URL, &Partial::default()), None);
        PartMeta::store(None, &part).unwrap();
        fs::write(PartMeta::path(&part), "old").unwrap();
        PartMeta::store(None, &part).unwrap();
        assert!(!PartMeta::path(&part).exists());
    }
}
