//! What help and usage errors say.

use crate::Project;

#[test]
fn help_names_every_command_with_a_line() {
    let help = Project::flights().ok("--help");
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = [
        "plan",
        "apply",
        "log",
        "refresh",
        "backfill",
        "run",
        "compact",
        "gc",
        "check",
        "query",
        "training-set",
        "audit",
        "train",
        "package",
        "deploy",
        "serve",
        "push",
        "producers",
        "set-aside",
        "lookup",
        "predict",
        "status",
        "token",
        "freshness-curve",
        "demo",
        "help",
    ];
    assert_eq!(commands, expected, "{help}");
    for command in &expected[..expected.len() - 1] {
        let own = Project::flights().ok(&format!("{command} --help"));
        assert!(own.contains("--project") && own.contains("--json") && own.contains("--clock"), "{own}");
    }
}

#[test]
fn a_mistyped_command_is_answered_with_the_nearest() {
    Project::flights().fails("refesh", &["refesh", "refresh"]);
    Project::flights().fails("apply", &["--message"]);
    Project::flights().fails("set-aside shares --drop", &["--message"]);
    Project::flights().fails("set-aside --retry", &["VIEW"]);
}
