//! Which path, Flight command and action needs which scope: all of it, in one place.

use springhouse_featurestore::Result;
use springhouse_featurestore::training_set::CommandSpine;

use super::Caller;
use super::scope::Scope;
use crate::flight::Command;

/// What a path needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: anybody may ask whether a process is alive.
    Nothing,
    /// A known caller; what else is needed depends on the message, and its handler asks.
    Known,
    /// A caller with one of these scopes.
    OneOf(&'static [Scope]),
}

use Need::{Known, Nothing, OneOf};

/// Paths, or all below those that end in `/`. What is not named needs a known caller, and is not found then.
const PATHS: [(&str, Need); 12] = [
    ("/grpc.health.v1.Health/", Nothing),
    ("/grpc.reflection.v1.ServerReflection/", Known),
    ("/inference.GRPCInferenceService/ServerLive", Nothing),
    ("/inference.GRPCInferenceService/ServerReady", Nothing),
    ("/inference.GRPCInferenceService/ModelInfer", OneOf(&[Scope::Predict])),
    ("/inference.GRPCInferenceService/ServerMetadata", Known),
    ("/inference.GRPCInferenceService/", OneOf(&[Scope::Predict, Scope::Read, Scope::Operate])),
    ("/arrow.flight.protocol.FlightService/ListFlights", OneOf(&[Scope::Read])),
    ("/arrow.flight.protocol.FlightService/DoPut", OneOf(&[Scope::Push])),
    ("/arrow.flight.protocol.FlightService/", Known),
    // How things stand, as `status` says it: those who look after it, and those who read anyway.
    ("/metrics", OneOf(&[Scope::Operate, Scope::Read])),
    ("/", Known),
];

/// What a path needs: of the first entry that it is, or is below.
pub(crate) fn of_path(path: &str) -> Need {
    let covers = |entry: &str| path == entry || entry.ends_with('/') && path.starts_with(entry);
    PATHS.iter().find(|(entry, _)| covers(entry)).map_or(Known, |(_, need)| *need)
}

/// The scopes of which a Flight command needs one, whatever is asked of it: its data, its schema or its tickets.
pub(crate) fn of_command(command: &Command) -> &'static [Scope] {
    match command {
        // SQL text reads any table, and a name any file; what the project defines is for all who read.
        Command::TrainingSet(set) if matches!(set.spine, Some(CommandSpine::Written(_))) => &[Scope::Query],
        Command::TrainingSet(_) | Command::Lookup(_) | Command::Package(_) => &[Scope::Read],
        Command::Push(_) => &[Scope::Push],
    }
}

/// The scopes of which a Flight action needs one; one that does not exist needs none to be told so.
pub(crate) fn of_action(action: &str) -> &'static [Scope] {
    match action {
        "contracts" => &[Scope::Read],
        "status" => &[Scope::Read, Scope::Operate],
        // Who pushes numbers on from its own last batch; who sets producers right looks at them.
        "producers" => &[Scope::Read, Scope::Push, Scope::Operate],
        "follow" | "flush" | "change_producer" | "clock" => &[Scope::Operate],
        _ => &Scope::ALL,
    }
}

/// Whether a caller may send a command.
///
/// # Errors
/// As [`Caller::require_one_of`].
pub(crate) fn check_command(caller: &Caller, command: &Command) -> Result<()> {
    caller.require_one_of(of_command(command))
}
