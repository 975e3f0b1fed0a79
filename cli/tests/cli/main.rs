//! The command line as its users type it: every command on the flights example, `--json`, and what is said when
//! something is wrong.

#![allow(unreachable_pub, missing_docs)]

mod chain;
mod faults;
mod help;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder with the flights example's definitions and data, which nobody else uses.
pub struct Project {
    folder: tempfile::TempDir,
}

/// What a command said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Project {
    /// A folder without anything in it.
    pub fn empty() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    /// The flights example. The data is linked, not copied: tests that change a file remove the link first.
    pub fn flights() -> Self {
        let project = Self::empty();
        let folder = &project.folder;
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/flights");
        std::fs::create_dir(folder.path().join("data")).expect("an empty folder");
        for (part, kind) in [("", "sql"), ("data", "parquet")] {
            for entry in std::fs::read_dir(example.join(part)).expect("the example") {
                let path = entry.expect("readable").path();
                if path.extension().is_some_and(|extension| extension == kind) {
                    let name = path.file_name().expect("a file");
                    let from = path.canonicalize().expect("there");
                    std::os::unix::fs::symlink(from, folder.path().join(part).join(name)).expect("a link");
                }
            }
        }
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the project anew.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        if path.is_symlink() {
            std::fs::remove_file(&path).expect("a link");
        }
        std::fs::write(path, bytes).expect("writable");
    }

    /// Runs a command line, split at spaces; a part in `'...'` stays whole.
    pub fn run(&self, line: &str) -> Said {
        said(&self.command(line).output().expect("the binary runs"))
    }

    /// Runs a command that must succeed; what it prints.
    pub fn ok(&self, line: &str) -> String {
        let said = self.run(line);
        assert_eq!(said.code, 0, "{line}\n{}\n{}", said.out, said.err);
        said.out
    }

    /// Runs a command with `--json`; what it prints must be one JSON value.
    pub fn json(&self, line: &str) -> Value {
        let out = self.ok(&format!("--json {line}"));
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {error}\n{out}"))
    }

    /// Runs a command that must fail and say all of these on stderr, and nothing on stdout.
    pub fn fails(&self, line: &str, expected: &[&str]) {
        let said = self.run(line);
        assert_ne!(said.code, 0, "{line}\n{}", said.out);
        assert_eq!(said.out, "", "{line}");
        for part in expected {
            assert!(said.err.contains(part), "{line}: no {part:?} in\n{}", said.err);
        }
        assert!(!said.err.contains("panicked"), "{}", said.err);
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_springhouse"));
        command.arg("--project").arg(self.folder.path()).args(split(line)).stdin(Stdio::null());
        command.env("SPRINGHOUSE_USER", "tester").env_remove("SPRINGHOUSE_LOG");
        command
    }
}

pub fn said(output: &Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}
