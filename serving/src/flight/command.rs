//! Flight commands: JSON in descriptors and tickets.

use serde::{Deserialize, Serialize};
use springhouse_featurestore::push::ProducerChange;
use springhouse_featurestore::training_set::TrainingSetCommand;
use springhouse_featurestore::{Error, Result};

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Keys in, features out.
    Lookup(LookupCommand),
    /// A package's files, by digest.
    Package(String),
    /// A training set.
    TrainingSet(TrainingSetCommand),
    /// Events in, acknowledgements out.
    Push(PushCommand),
}

/// To which source events are pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushCommand {
    /// The source's name.
    pub source: String,
}

/// Which producers: the body of the actions `producers` and `change_producer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProducersCommand {
    /// The source's name.
    pub source: String,
    /// Which of them, and what is to be changed about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<(String, ProducerChange)>,
    /// Who wants that, where the server asks nobody who they are.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// And why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// Which lookup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookupCommand {
    /// A contract's name (its deployed version, else its current one), or `name@version`.
    pub contract: String,
}

impl Command {
    /// Reads a descriptor's command or a ticket.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] with the accepted forms.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|error| {
            Error::invalid("not a command")
                .with("given", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]))
                .remedy(
                    r#"send JSON such as {"lookup": {"contract": "name"}}, {"package": "sha256:..."}, {"push": {"source": "name"}} or {"training_set": {"contract": "name", "spine": {"name": "name"}}}"#,
                )
                .source(error)
        })
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Pushes to a source.
    pub fn push(source: impl Into<String>) -> Self {
        Self::Push(PushCommand { source: source.into() })
    }

    /// A lookup for a contract.
    pub fn lookup(contract: impl Into<String>) -> Self {
        Self::Lookup(LookupCommand { contract: contract.into() })
    }
}

#[cfg(test)]
mod tests {
    use springhouse_featurestore::training_set::CommandSpine;

    use super::*;

    #[test]
    fn commands_read_back_and_others_are_refused_with_the_accepted_forms() {
        let command = Command::lookup("arrival_delay");
        assert_eq!(command.to_bytes(), br#"{"lookup":{"contract":"arrival_delay"}}"#);
        assert_eq!(Command::parse(&command.to_bytes()).expect("own bytes"), command);
        for wrong in [b"".as_slice(), b"{}", b"hello", br#"{"lookup": {}}"#, br#"{"drop": "all"}"#, b"\xff"] {
            let error = Command::parse(wrong).expect_err("not a command");
            assert!(error.to_string().contains("lookup"), "{error}");
        }
    }

    #[test]
    fn a_spine_is_a_text_or_the_name_of_a_definition_and_never_taken_for_the_other() {
        let spine = |json: &str| {
            let command = Command::parse(format!(r#"{{"training_set":{{"contract":"c","spine":{json}}}}}"#).as_bytes());
            command.map(|command| {
                let Command::TrainingSet(set) = &command else { panic!("another command: {command:?}") };
                assert_eq!(Command::parse(&command.to_bytes()).expect("own bytes"), command);
                set.spine.clone()
            })
        };
        assert_eq!(spine(r#"{"name":"landings"}"#).expect("a name"), Some(CommandSpine::defined("landings")));
        assert_eq!(spine(r#""landings""#).expect("a file"), Some(CommandSpine::Written("landings".to_owned())));
        for wrong in ["{}", r#"{"name":"a","query":"SELECT 1"}"#, r#"["landings"]"#, "1"] {
            spine(wrong).expect_err(wrong);
        }
    }
}
