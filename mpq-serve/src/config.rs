//! Options from a file: TOML whose keys are the long names of the command line's options.
//!
//! They become arguments, which go through the same checks. What the command line says itself is not read from the
//! file.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, Command};
use toml::{Table, Value};

/// The command that serves as the program without one does.
const HANDOVER: &str = "handover";

/// The command line with what the file of its `--config` adds, if it names one.
///
/// # Errors
/// The file cannot be read, or says what is no option.
pub(crate) fn complete(
    command: &Command,
    mut line: Vec<OsString>,
) -> Result<Vec<OsString>, String> {
    let lenient = command.clone().ignore_errors(true);
    let Ok(matches) = lenient.try_get_matches_from(&line) else {
        return Ok(line);
    };
    // Only those that serve have such a file.
    let (command, matches, start) = match matches.subcommand() {
        None => (command, &matches, 1),
        Some((HANDOVER, matches)) => match command.find_subcommand(HANDOVER) {
            Some(command) => (command, matches, 2),
            None => return Ok(line),
        },
        Some(_) => return Ok(line),
    };
    let Ok(Some(file)) = matches.try_get_one::<PathBuf>("config") else {
        return Ok(line);
    };
    let said = |option: &clap::Arg| {
        let id = option.get_id().as_str();
        let said = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        said(id) || id == "root" && said("dir")
    };
    let added = read(command, file, said).map_err(|why| format!("{}: {why}", file.display()))?;
    line.splice(start..start, added);
    Ok(line)
}

/// What the file adds, but for options that were `said`.
fn read(
    command: &Command,
    file: &Path,
    said: impl Fn(&clap::Arg) -> bool,
) -> Result<Vec<OsString>, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let table: Table = text.parse().map_err(|error| format!("{error}"))?;
    let mut added = Vec::new();
    for (key, value) in &table {
        let mut options = command.get_arguments();
        let option = options.find(|option| option.get_long() == Some(key) && key != "config");
        let option = option.ok_or_else(|| format!("there is no option \"{key}\""))?;
        if said(option) {
            continue;
        }
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        let is_flag = matches!(option.get_action(), ArgAction::SetTrue);
        let stands_alone = |values: clap::builder::ValueRange| values.min_values() == 0;
        let stands_alone = is_flag || option.get_num_args().is_some_and(stands_alone);
        let before = added.len();
        for value in values {
            let text = match value {
                Value::Boolean(set) if stands_alone => {
                    added.extend(set.then(|| format!("--{key}").into()));
                    continue;
                }
                Value::String(text) if !is_flag => text.clone(),
                Value::Integer(number) if !is_flag => number.to_string(),
                Value::Float(number) if !is_flag => number.to_string(),
                _ if is_flag => return Err(format!("\"{key}\" is true or false")),
                _ => return Err(format!("\"{key}\" is a text, a number, or a list of them")),
            };
            added.push(format!("--{key}={text}").into());
        }
        check(command, &added[before..])?;
    }
    Ok(added)
}

/// Whether an option takes these values. Later it would be the command line that is said to be wrong.
fn check(command: &Command, arguments: &[OsString]) -> Result<(), String> {
    let line = std::iter::once(OsString::new()).chain(arguments.iter().cloned());
    match command.clone().try_get_matches_from(line) {
        Err(error)
            if [ErrorKind::InvalidValue, ErrorKind::ValueValidation].contains(&error.kind()) =>
        {
            let words = error.to_string();
            let words = words.lines().next().unwrap_or_default();
            Err(words.trim_start_matches("error: ").to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::CommandFactory;

    use super::*;
    use crate::args::Args;

    /// The arguments that a file with this text adds to this command line.
    fn added(text: &str, line: &str) -> Result<Vec<String>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let line = line.replace("FILE", file.path().to_str().unwrap());
        let line: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        let given = line.len() - 1;
        let line = complete(&Args::command(), line)?;
        let added = line[1..line.len() - given].iter();
        Ok(added.map(|arg| arg.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn keys_are_options_and_the_command_line_wins() {
        let text = "listen = '[::1]:1'\nseed = 7\ntcp = true\nunannounced = false\n\
                    pool = ['192.0.2.1:1024', '192.0.2.2:1024']";
        assert_eq!(
            added(text, "mpq-serve --config FILE").unwrap(),
            [
                "--listen=[::1]:1",
                "--pool=192.0.2.1:1024",
                "--pool=192.0.2.2:1024",
                "--seed=7",
                "--tcp",
            ]
        );
        let line = "mpq-serve --pool 192.0.2.3:1024 --config FILE --listen [::]:2";
        assert_eq!(added(text, line).unwrap(), ["--seed=7", "--tcp"]);
        assert_eq!(added(text, "mpq-serve").unwrap(), [""; 0]);
        let random = |value| added(&format!("random = {value}"), "mpq-serve --config FILE");
        assert_eq!(random("true").unwrap(), ["--random"]);
        assert_eq!(random("false").unwrap(), [""; 0]);
        assert_eq!(random("'1M'").unwrap(), ["--random=1M"]);
        let line = "mpq-serve --config FILE dir";
        assert_eq!(added("root = '/srv'", line).unwrap(), [""; 0]);
        assert_eq!(
            added(text, "mpq-serve restore --images d").unwrap(),
            [""; 0]
        );
    }

    #[test]
    fn what_is_no_option_is_an_error_that_names_the_file() {
        for (text, wanted) in [
            ("lisen = '[::]:1'", "there is no option \"lisen\""),
            ("config = 'other'", "there is no option \"config\""),
            ("tcp = 1", "\"tcp\" is true or false"),
            ("listen = true", "\"listen\" is a text"),
            ("listen", "TOML parse error"),
            (
                "listen = 'nowhere'",
                "invalid value 'nowhere' for '--listen",
            ),
        ] {
            let error = added(text, "mpq-serve --config FILE").unwrap_err();
            assert!(error.starts_with("/") && error.contains(wanted), "{error}");
        }
        let error = added("", "mpq-serve --config /nonexistent").unwrap_err();
        assert!(error.starts_with("/nonexistent: No such file"), "{error}");
    }
}
