//! What a directory without an index is answered with: a page for people, or JSON for programs.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{ACCEPT, HeaderMap};
use httpdate::HttpDate;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::Serialize;

/// A file or directory in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Its length, in bytes.
    pub len: u64,
    /// When it was last changed, where HTTP can express that.
    pub modified: Option<HttpDate>,
}

/// All that has a meaning in a path or a page is encoded.
const IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The page may load nothing and run nothing, whatever the names on it are.
pub(super) const POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.25rem;overflow-wrap:anywhere}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #8884}\
td:first-child{overflow-wrap:anywhere}\
th:nth-child(2),td:nth-child(2){text-align:right}\
td:nth-child(n+2){white-space:nowrap;font-variant-numeric:tabular-nums}\
a{text-decoration:none}a:hover{text-decoration:underline}";

/// Whether JSON is wanted, and not what browsers ask for.
pub(super) fn wants_json(header: &HeaderMap) -> bool {
    let values = header.get_all(ACCEPT).iter();
    let ranges = values.filter_map(|value| value.to_str().ok());
    let mut json = 0.0;
    let mut html = 0.0;
    for range in ranges.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        let weight = weight.map_or(Some(1.0), |weight| weight.parse().ok());
        match name.to_ascii_lowercase().as_str() {
            "application/json" => json = weight.unwrap_or(0.0),
            "text/html" => html = weight.unwrap_or(0.0),
            _ => {}
        }
    }
    json > html
}

/// One of the objects of the array: what nginx calls them.
#[derive(Serialize)]
struct Item<'a> {
    name: std::borrow::Cow<'a, str>,
    r#type: &'static str,
    mtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

/// For programs.
pub(super) fn json(entries: &[Entry]) -> Bytes {
    let items: Vec<_> = entries
        .iter()
        .map(|entry| Item {
            name: entry.name.to_string_lossy(),
            r#type: if entry.is_directory {
                "directory"
            } else {
                "file"
            },
            mtime: entry.modified.map(|time| time.to_string()),
            size: (!entry.is_directory).then_some(entry.len),
        })
        .collect();
    serde_json::to_vec(&items)
        .expect("texts and numbers become JSON")
        .into()
}

/// For people: `path` is below the root.
pub(super) fn html(path: &Path, entries: &[Entry]) -> Bytes {
    let shown = path.to_string_lossy();
    let is_root = shown == ".";
    let title = match is_root {
        true => "/".to_owned(),
        false => format!("/{}/", escape(shown.trim_end_matches('/'))),
    };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n<table>\n\
         <tr><th>Name<th>Size<th>Changed\n"
    );
    let write = "writing to a String does not fail";
    if !is_root {
        page += "<tr><td><a href=\"../\">../</a><td><td>\n";
    }
    for entry in entries {
        let slash = if entry.is_directory { "/" } else { "" };
        let link = encode(entry.name.as_bytes());
        let name = entry.name.to_string_lossy();
        let size = match entry.is_directory {
            true => String::new(),
            false => size(entry.len),
        };
        let modified = entry
            .modified
            .map_or(String::new(), |time| time.to_string());
        writeln!(
            page,
            "<tr><td><a href=\"./{link}{slash}\">{}{slash}</a><td title=\"{} bytes\">{size}<td>{modified}",
            escape(&name),
            entry.len
        )
        .expect(write);
    }
    page += "</table>\n";
    page.into()
}

/// One part of a path, for a link.
pub(super) fn encode(part: &[u8]) -> String {
    percent_encode(part, IN_A_PATH).to_string()
}

/// A length that people can read: powers of 1000, as everywhere in these tools.
fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["bytes", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().expect("there are five");
    while size >= 1000.0
        && let Some(next) = units.next()
    {
        size /= 1000.0;
        unit = next;
    }
    match unit {
        "bytes" => format!("{bytes} bytes"),
        unit => format!("{size:.1} {unit}"),
    }
}

/// Text that is nothing but text in HTML, also between quotes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, is_directory: bool, len: u64) -> Entry {
        Entry {
            name: name.into(),
            is_directory,
            len,
            modified: Some("Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap()),
        }
    }

    #[test]
    fn names_are_text_and_links() {
        let entries = [
            entry("sub", true, 4096),
            entry("a b&<script>\"'.txt", false, 1_234_567),
            entry("javascript:x", false, 7),
        ];
        let page = html("x/<y>".as_ref(), &entries);
        let page = std::str::from_utf8(&page).unwrap();
        assert!(page.contains("<h1>/x/&lt;y&gt;/</h1>"), "{page}");
        assert!(page.contains("href=\"./sub/\">sub/</a>"), "{page}");
        assert!(page.contains("href=\"../\""), "{page}");
        let link =
            "href=\"./a%20b%26%3Cscript%3E%22%27.txt\">a b&amp;&lt;script&gt;&quot;&#39;.txt<";
        assert!(page.contains(link), "{page}");
        assert!(page.contains("href=\"./javascript%3Ax\""), "{page}");
        assert!(
            page.contains(">1.2 MB<") && page.contains(">7 bytes<"),
            "{page}"
        );
        assert!(
            !html(".".as_ref(), &entries)
                .windows(4)
                .any(|part| part == b"\"../")
        );

        let list: serde_json::Value = serde_json::from_slice(&json(&entries)).unwrap();
        assert_eq!(list[0]["type"], "directory");
        assert_eq!(list[1]["name"], "a b&<script>\"'.txt");
        assert_eq!(list[1]["size"], 1_234_567);
        assert_eq!(list[1]["mtime"], "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn browsers_get_html_and_programs_json() {
        for (accept, expected) in [
            ("application/json", true),
            ("Application/JSON; q=0.9, text/html; q=0.5", true),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                false,
            ),
            ("text/html, application/json", false),
            ("*/*", false),
            ("", false),
        ] {
            let header = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(wants_json(&header), expected, "{accept}");
        }
        assert!(!wants_json(&HeaderMap::new()));
    }
}
