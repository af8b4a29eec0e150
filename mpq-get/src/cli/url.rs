//! The URL: what may be typed for one, and which file name it stands for.

use url::Url;

use crate::error::Error;

/// Reads a URL as it is typed, without a scheme or with https.
pub(super) fn parse_url(given: &str) -> Result<Url, Error> {
    let bad = |reason: String| Error::Url {
        url: given.to_owned(),
        reason,
    };
    // `host:8443/x` would parse as the scheme `host`.
    let mut url = if given.contains("://") {
        Url::parse(given)
    } else {
        Url::parse(&format!("https://{given}"))
    }
    .map_err(|error| bad(error.to_string()))?;
    if url.scheme() != "https" {
        return Err(Error::Scheme(url.scheme().to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("user names and passwords are not supported".to_owned()));
    }
    if url.port() == Some(0) {
        return Err(bad("no server can listen on port 0".to_owned()));
    }
    url.set_fragment(None);
    Ok(url)
}

/// The last part of the path as it stands in the URL. `Url` has resolved dot segments and turned
/// backslashes into slashes, so the name cannot lead into another folder.
pub(super) fn remote_name(url: &Url) -> Result<String, Error> {
    match url.path().rsplit('/').next() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Error::NoName(url.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(given: &str) -> Result<String, u8> {
        parse_url(given)
            .map(String::from)
            .map_err(|error| error.code())
    }

    #[test]
    fn https_is_guessed_and_insisted_on() {
        assert_eq!(url("host/a").unwrap(), "https://host/a");
        assert_eq!(url("host:8443/a?b#c").unwrap(), "https://host:8443/a?b");
        assert_eq!(url("http://host/a"), Err(1));
        assert_eq!(url("ftp://host/a"), Err(1));
        assert_eq!(url("https://"), Err(3));
        assert_eq!(url("https://host:0/"), Err(3));
        assert_eq!(url("https://host:99999/"), Err(3));
        assert_eq!(url("https://user:pass@host/"), Err(3));
    }

    #[test]
    fn the_remote_name_stays_in_this_folder() {
        let name = |given| remote_name(&parse_url(given).unwrap()).map_err(|error| error.code());
        assert_eq!(name("https://h/a/b.iso?x=/y").unwrap(), "b.iso");
        assert_eq!(name("https://h/a/..%2f..%2fb").unwrap(), "..%2f..%2fb");
        assert_eq!(name("https://h/a/..\\b").unwrap(), "b");
        assert_eq!(name("https://h/a/%2e%2e"), Err(23));
        assert_eq!(name("https://h/a/"), Err(23));
        assert_eq!(name("https://h"), Err(23));
    }
}
