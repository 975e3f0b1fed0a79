//! What is wrong with a definition file: where, what, and what would be accepted.

use std::fmt;

use springhouse_featurestore::Error;

/// A place in a file. Lines and columns count from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

/// A definition file's name and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// How it is named in messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl SourceFile {
    fn line(&self, number: u64) -> &str {
        let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
        self.text.lines().nth(index).unwrap_or_default()
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The file's name.
    pub file: String,
    /// The place.
    pub at: Position,
    /// The line's text.
    pub line: String,
    /// What is wrong.
    pub message: String,
    /// What would be accepted.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A fault at a place of a file.
    pub fn new(file: &SourceFile, at: Position, message: impl Into<String>) -> Self {
        Self { file: file.name.clone(), at, line: file.line(at.line).to_owned(), message: message.into(), help: None }
    }

    /// Adds what would be accepted.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.at;
        writeln!(f, "error: {}", self.message)?;
        let gutter = line.to_string().len();
        writeln!(f, "{:gutter$}--> {}:{line}:{column}", "", self.file)?;
        writeln!(f, "{:gutter$} |", "")?;
        let (shown, index) = excerpt(&self.line, usize::try_from(column.saturating_sub(1)).unwrap_or(0));
        writeln!(f, "{line} | {shown}")?;
        let before: String = shown.chars().take(index).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(f, "{:gutter$} | {before}^", "")?;
        if let Some(help) = &self.help {
            write!(f, "\n{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// The part of a line around one of its characters, and where that one then stands.
fn excerpt(line: &str, index: usize) -> (String, usize) {
    const AROUND: usize = 80;
    let start = index.saturating_sub(AROUND);
    let mut shown: String = line.chars().skip(start).take(2 * AROUND).collect();
    let cut = line.chars().nth(start + 2 * AROUND).is_some();
    if cut {
        shown.push_str(" ...");
    }
    if start == 0 { (shown, index) } else { (format!("... {shown}"), index - start + 4) }
}

/// All faults of some files, in order of place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Sorts faults by place; `None` where there are none.
    pub fn of(mut faults: Vec<Diagnostic>) -> Option<Self> {
        faults.sort();
        faults.dedup();
        (!faults.is_empty()).then_some(Self(faults))
    }

    /// The faults.
    pub fn faults(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.0 {
            writeln!(f, "{fault}\n")?;
        }
        let count = self.0.len();
        write!(f, "{count} error{} in the definitions; nothing was applied", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for Diagnostics {}

impl From<Diagnostics> for Error {
    fn from(faults: Diagnostics) -> Self {
        Self::invalid(faults.to_string())
    }
}

/// `; did you mean x?` when one of the names is near, else the names that there are.
pub(crate) fn suggest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.into_iter().collect();
    let near = names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&wrong.to_lowercase(), &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min();
    match near {
        Some((_, name)) => Some(format!("did you mean '{name}'?")),
        None if names.is_empty() => None,
        None => Some(format!("there are: {}", names.join(", "))),
    }
}
