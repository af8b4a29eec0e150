//! How the other host is reached: by ssh, or a program like it.

use std::process::Command;

/// A program that runs commands at a host.
#[derive(Debug, Clone)]
pub struct Ssh {
    words: Vec<String>,
    host: String,
}

impl Ssh {
    /// The program, with its options, separated by spaces; and what it calls the host.
    pub fn new(command: &str, host: &str) -> Self {
        Self {
            words: command.split_whitespace().map(str::to_owned).collect(),
            host: host.to_owned(),
        }
    }

    /// The program's name.
    pub fn program(&self) -> &str {
        self.words.first().map_or("ssh", String::as_str)
    }

    /// What has a shell there do this.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new(self.program());
        command.args(self.words.iter().skip(1));
        command.arg(&self.host).arg(script);
        command
    }
}

/// As a shell takes it for one word.
pub fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_one_word() {
        assert_eq!(quoted("/usr/bin/mpq-serve"), "/usr/bin/mpq-serve");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("/it's here"), r"'/it'\''s here'");
    }

    #[test]
    fn options_of_the_program_come_before_the_host() {
        let command = Ssh::new("ssh -p 2022", "root@b").command("true");
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(command.get_program(), "ssh");
        assert_eq!(arguments, ["-p", "2022", "root@b", "true"]);
    }
}
