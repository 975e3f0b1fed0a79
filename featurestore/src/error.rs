//! The error of the whole project: a kind the caller can act on, the place and value, the remedy, and the cause.

use std::fmt;

/// The most bytes of a value that an error names: whoever sent a larger one knows it.
const MOST_VALUE_BYTES: usize = 200;

/// The most bytes of what one cause says.
const MOST_CAUSE_BYTES: usize = 1000;

/// The beginning of a text that is longer than so many bytes, cut between two characters, and how long it was; else the text.
fn cut(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}\u{2026} ({} bytes)", &text[..end], text.len())
}

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The input is wrong: correct it; a retry gives the same answer.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// Another writer came first: read the new state, check again, retry.
    Conflict,
    /// Stored data does not match its checksum or format: follow the remedy.
    Damaged,
    /// Stored data is of a newer release than this program: upgrade it.
    Newer,
    /// The resource is held by another process, or full: try again later or elsewhere.
    Busy,
    /// A contract's own rule refuses to answer.
    Refused,
    /// The caller's deadline has passed.
    Expired,
    /// Who calls is not known: show a token or a certificate.
    Unauthenticated,
    /// The caller lacks a scope for this.
    Forbidden,
    /// Storage or the network failed: a retry may succeed.
    Unavailable,
    /// A fault of this program: please report it.
    Internal,
}

/// An error with its place, value and remedy.
///
/// Built as `Error::invalid("...").with("file", path).remedy("...")`; printed as
/// `message [file: path]; remedy`, causes after it through [`std::error::Error::source`].
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<(&'static str, String)>,
    remedy: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {
        $(
            #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
            pub fn $name(message: impl Into<String>) -> Self {
                Self::new(ErrorKind::$kind, message)
            }
        )*
    };
}

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), context: Vec::new(), remedy: None, source: None }))
    }

    constructors! {
        invalid => Invalid,
        not_found => NotFound,
        conflict => Conflict,
        damaged => Damaged,
        newer => Newer,
        busy => Busy,
        refused => Refused,
        expired => Expired,
        unauthenticated => Unauthenticated,
        forbidden => Forbidden,
        unavailable => Unavailable,
        internal => Internal,
    }

    /// Adds where it happened or with what value, of which no more than its beginning is kept.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((name, cut(value.to_string(), MOST_VALUE_BYTES)));
        self
    }

    /// Adds what the reader can do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was added last under a name by [`Self::with`].
    pub fn context(&self, name: &str) -> Option<&str> {
        self.0.context.iter().rev().find(|(of, _)| *of == name).map(|(_, value)| value.as_str())
    }

    /// The same as [`Self::chain`], of which no more than so many bytes are given.
    pub fn brief(&self, most: usize) -> String {
        cut(self.chain(), most)
    }

    /// The message with its causes, on one line; of a cause that says much no more than its beginning.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(inner) = cause {
            let line = cut(inner.to_string(), MOST_CAUSE_BYTES);
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = inner.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if !self.0.context.is_empty() {
            let places: Vec<String> = self.0.context.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            write!(f, " [{}]", places.join(", "))?;
        }
        if let Some(remedy) = &self.0.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::internal("arrow refused a batch").source(error)
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { ref path, .. } => {
                Self::not_found("no such object").with("path", path.clone()).source(error)
            }
            error => Self::unavailable("object storage failed").source(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_place_the_value_and_the_remedy() {
        let error = Error::invalid("the interval is not positive")
            .with("clause", "REFRESH EVERY")
            .with("value", "0 s")
            .remedy("write an interval such as '10 minutes'");
        assert_eq!(
            error.to_string(),
            "the interval is not positive [clause: REFRESH EVERY, value: 0 s]; write an interval such as '10 minutes'"
        );
    }

    #[test]
    fn an_error_repeats_no_more_than_the_beginning_of_a_value_or_a_cause() {
        let long = "\u{e9}".repeat(1 << 20);
        let error = Error::invalid("no such tensor").with("tensor", &long).source(Error::invalid(&long));
        let text = error.chain();
        assert!(text.len() < 1500 && text.contains("(2097152 bytes)"), "{} bytes", text.len());
        assert_eq!(cut("\u{e9}\u{e9}".to_owned(), 3), "\u{e9}\u{2026} (4 bytes)");
        assert_eq!(cut("as it is".to_owned(), 8), "as it is");
    }
}
