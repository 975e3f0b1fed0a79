//! How long and how deeply nested SQL text may be. The parser, the planner and every pass over an expression recurse into
//! it, a chain such as `a OR b OR c` included, which nests once for each of its terms: text is measured in tokens before
//! any of them sees it, wherever it comes from.
//!
//! A chain's height is that of the tree it becomes: its operators, and the tallest of what stands in its brackets. What
//! stands beside one another (items of a list, clauses, the branches of a `CASE`) does not add up.

use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Word};
use springhouse_featurestore::{Error, Result};

use crate::diagnostic::Position;

/// The stack of threads that plan: some 32 KiB for each level of the tallest text that is taken. It is address space; what
/// is not used of it costs nothing.
pub const STACK_BYTES: usize = 32 << 20;

/// The most operators that an expression may have one in another. What people write has tens, generated filters hundreds.
const MOST_LEVELS: usize = 1_000;

/// The levels that a join or a set operation counts as: several nodes of a plan stand for it.
const JOIN_LEVELS: usize = 8;

/// The most `SELECT`s of a statement: each is a level of the plan where one reads from another.
const MOST_SELECTS: usize = 100;

/// The most `FROM`s: one may stand without a `SELECT`, and nest as one does; others belong to functions.
const MOST_FROMS: usize = 500;

/// The most bytes of a query or an expression.
const MOST_BYTES: usize = 1 << 20;

/// The most bytes of a definition file: some ten thousand definitions.
const MOST_FILE_BYTES: usize = 16 << 20;

/// The most tokens of a statement: a list of some ten thousand values has them.
const MOST_TOKENS: usize = 100_000;

/// Text that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TooMuch {
    /// Where it goes beyond its bounds.
    pub(crate) at: Position,
    /// What there is too much of.
    pub(crate) message: String,
    /// What to write instead.
    pub(crate) help: &'static str,
}

impl TooMuch {
    fn new(at: Position, message: String, help: &'static str) -> Self {
        Self { at, message, help }
    }
}

/// Checks the size of a definition file.
pub(crate) fn check_file(text: &str) -> std::result::Result<(), TooMuch> {
    if text.len() <= MOST_FILE_BYTES {
        return Ok(());
    }
    let message = format!("the file has {} bytes, {MOST_FILE_BYTES} at most are read", text.len());
    Err(TooMuch::new(Position { line: 1, column: 1 }, message, "divide it: all *.sql files of a project are read"))
}

/// Checks a query or an expression that stands for itself.
///
/// # Errors
/// An error of kind [`springhouse_featurestore::ErrorKind::Invalid`] that names the place, as DataFusion's external error.
pub(crate) fn check_text(text: &str) -> std::result::Result<(), DataFusionError> {
    check_query(text).map_err(|error| DataFusionError::External(Box::new(error)))
}

fn check_query(text: &str) -> Result<()> {
    let refused = |much: TooMuch| {
        Error::invalid(much.message).with("line", much.at.line).with("column", much.at.column).remedy(much.help)
    };
    if text.len() > MOST_BYTES {
        let message = format!("the SQL text has {} bytes, {MOST_BYTES} at most are read", text.len());
        let help = "put its values into a table, and join it";
        return Err(refused(TooMuch::new(Position { line: 1, column: 1 }, message, help)));
    }
    // What is no text of tokens is told by the parser.
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location() else { return Ok(()) };
    check(&tokens).map_err(refused)
}

/// Checks a statement's tokens.
pub(crate) fn check(tokens: &[TokenWithSpan]) -> std::result::Result<(), TooMuch> {
    let place = |token: &TokenWithSpan| Position { line: token.span.start.line, column: token.span.start.column };
    let mut levels = Levels::default();
    for (index, token) in tokens.iter().enumerate() {
        if index >= MOST_TOKENS {
            let message = format!("the statement is longer than {MOST_TOKENS} words and signs");
            return Err(TooMuch::new(place(token), message, "put its values into a table, and join it"));
        }
        levels.take(&token.token);
        if levels.froms > MOST_FROMS {
            let message = format!("the statement has more than {MOST_FROMS} FROMs");
            return Err(TooMuch::new(place(token), message, "divide it into views that read from one another"));
        }
        if levels.selects > MOST_SELECTS {
            let message = format!("the statement has more than {MOST_SELECTS} SELECTs");
            return Err(TooMuch::new(place(token), message, "divide it into views that read from one another"));
        }
        if levels.height() > MOST_LEVELS {
            let message = format!("the expression has more than {MOST_LEVELS} operators one in another");
            let help = "write column IN (a, b, ...) for a chain of OR, or join a table of the values";
            return Err(TooMuch::new(place(token), message, help));
        }
    }
    Ok(())
}

/// What opened a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opened {
    Bracket,
    Case,
}

/// A group: what stands between brackets, or a `CASE`.
#[derive(Debug, Clone, Copy)]
struct Group {
    opened: Opened,
    /// `AND`s and `OR`s of the item that is read; nothing binds less, so the terms between them do not add up.
    connectives: usize,
    /// The tallest of that item's terms before.
    terms: usize,
    /// Operators of the term that is read.
    operators: usize,
    /// The tallest group in that term.
    inner: usize,
    /// The tallest of the items before.
    before: usize,
    /// Joins and set operations of the whole group.
    joins: usize,
    /// Whether tables of a `FROM` are read.
    tables: bool,
}

impl Group {
    fn new(opened: Opened) -> Self {
        Self { opened, connectives: 0, terms: 0, operators: 0, inner: 0, before: 0, joins: 0, tables: false }
    }

    fn height(&self) -> usize {
        self.before.max(self.item()) + self.joins * JOIN_LEVELS
    }

    /// The height of the item that is read.
    fn item(&self) -> usize {
        self.connectives + self.terms.max(self.operators + self.inner)
    }

    /// The next term of the item begins.
    fn connect(&mut self) {
        self.terms = self.terms.max(self.operators + self.inner);
        (self.operators, self.inner) = (0, 0);
        self.connectives += 1;
    }

    /// The next item begins.
    fn next(&mut self) {
        self.before = self.before.max(self.item());
        (self.connectives, self.terms, self.operators, self.inner) = (0, 0, 0, 0);
    }
}

/// The groups that are open, the outermost first.
#[derive(Debug)]
struct Levels {
    groups: Vec<Group>,
    selects: usize,
    /// `FROM`s so far.
    froms: usize,
    /// Whether the last word was `DISTINCT`: the `FROM` of `IS DISTINCT FROM` has no tables.
    distinct: bool,
}

impl Default for Levels {
    fn default() -> Self {
        Self { groups: vec![Group::new(Opened::Bracket)], selects: 0, froms: 0, distinct: false }
    }
}

impl Levels {
    fn top(&mut self) -> &mut Group {
        if self.groups.is_empty() {
            self.groups.push(Group::new(Opened::Bracket));
        }
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    /// The height of the group that is read, and of the groups around it as far as they are nested.
    fn height(&self) -> usize {
        self.groups.last().map_or(0, Group::height).max(self.groups.len())
    }

    fn close(&mut self) {
        // The outermost stays: a bracket too many is for the parser to tell.
        if self.groups.len() > 1
            && let Some(closed) = self.groups.pop()
        {
            let top = self.top();
            top.inner = top.inner.max(closed.height() + 1);
        }
    }

    fn take(&mut self, token: &Token) {
        let after_distinct = matches!(token, Token::Whitespace(_)) && self.distinct;
        match token {
            Token::Word(word) if word.quote_style.is_none() => self.take_word(word),
            Token::LParen => self.groups.push(Group::new(Opened::Bracket)),
            Token::LBracket | Token::LBrace => {
                self.top().operators += 1;
                self.groups.push(Group::new(Opened::Bracket));
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                while self.groups.len() > 1 && self.top().opened == Opened::Case {
                    self.close();
                }
                self.close();
            }
            Token::Comma => {
                let top = self.top();
                top.next();
                top.joins += usize::from(top.tables);
            }
            _ if is_operand(token) => {}
            _ => self.top().operators += 1,
        }
        let distinct = matches!(token, Token::Word(Word { keyword: Keyword::DISTINCT, .. }));
        self.distinct = distinct || after_distinct;
    }

    fn take_word(&mut self, word: &Word) {
        let distinct = self.distinct;
        let top = self.top();
        match word.keyword {
            Keyword::AND | Keyword::OR | Keyword::XOR => top.connect(),
            Keyword::NOT
            | Keyword::IS
            | Keyword::NOTNULL
            | Keyword::IN
            | Keyword::LIKE
            | Keyword::ILIKE
            | Keyword::RLIKE
            | Keyword::REGEXP
            | Keyword::SIMILAR
            | Keyword::BETWEEN
            | Keyword::OVERLAPS
            | Keyword::MEMBER
            | Keyword::DIV
            | Keyword::AT
            | Keyword::COLLATE => top.operators += 1,
            Keyword::JOIN => top.joins += 1,
            Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::MINUS => {
                top.next();
                top.joins += 1;
                top.tables = false;
            }
            Keyword::SELECT => {
                top.next();
                top.tables = false;
                self.selects += 1;
            }
            Keyword::FROM if !distinct => {
                top.next();
                top.tables = true;
                self.froms += 1;
            }
            Keyword::WHERE
            | Keyword::HAVING
            | Keyword::QUALIFY
            | Keyword::WINDOW
            | Keyword::GROUP
            | Keyword::ORDER
            | Keyword::LIMIT => {
                top.next();
                top.tables = false;
            }
            Keyword::ON | Keyword::WHEN | Keyword::THEN | Keyword::ELSE => top.next(),
            Keyword::CASE => self.groups.push(Group::new(Opened::Case)),
            Keyword::END if top.opened == Opened::Case => self.close(),
            _ => {}
        }
    }
}

/// Tokens that stand for a value or between values without nesting them.
fn is_operand(token: &Token) -> bool {
    matches!(
        token,
        Token::Word(_)
            | Token::Number(..)
            | Token::Char(_)
            | Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
            | Token::TripleSingleQuotedString(_)
            | Token::TripleDoubleQuotedString(_)
            | Token::DollarQuotedString(_)
            | Token::SingleQuotedByteStringLiteral(_)
            | Token::DoubleQuotedByteStringLiteral(_)
            | Token::SingleQuotedRawStringLiteral(_)
            | Token::DoubleQuotedRawStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::EscapedStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::Placeholder(_)
            | Token::Period
            | Token::SemiColon
            | Token::Whitespace(_)
            | Token::EOF
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        check_query(text).expect_err("too much").to_string()
    }

    fn chain(term: &str, operator: &str, terms: usize) -> String {
        vec![term; terms].join(operator)
    }

    #[test]
    fn what_people_and_generators_write_is_taken() {
        for text in [
            chain("x = 1", " OR ", 900),
            format!("SELECT {} FROM t", chain("a + b AS c", ", ", 5_000)),
            format!("x IN ({})", chain("1", ", ", 20_000)),
            format!("CASE {} ELSE 0 END", chain("WHEN a = 1 AND b = 2 THEN 3", " ", 2_000)),
            format!("SELECT 1 FROM t {}", chain("JOIN u ON t.a = u.a AND t.b = u.b", " ", 50)),
            chain("SELECT a FROM t WHERE b = 1", " UNION ALL ", 90),
            "SELECT a IS DISTINCT FROM b, c, d FROM t".to_owned(),
            "no text of tokens '".to_owned(),
            ") ] } ))".to_owned(),
        ] {
            check_query(&text).unwrap_or_else(|error| panic!("{}: {error}", &text[..text.len().min(60)]));
        }
    }

    #[test]
    fn what_would_exhaust_a_stack_is_refused_with_its_place() {
        let sum = refused(&format!("SELECT\n{}", chain("1", "+", 499_000)));
        assert!(sum.contains("line: 2, column: 2002") && sum.contains("operators"), "{sum}");
        let inner = format!("({})", chain("1", "+", 600));
        for text in [
            chain("x = 1", " OR ", 4_000),
            chain("NOT", " ", 2_000),
            format!("{}1{}", "(".repeat(2_000), ")".repeat(2_000)),
            format!("{inner} + {}", chain("1", "+", 600)),
            format!("({} + {inner})", chain("1", "+", 600)),
            format!("x{}", "::INT".repeat(2_000)),
            format!("x{}", "[1]".repeat(2_000)),
            format!("CAST(x AS {}INT{})", "ARRAY<".repeat(2_000), ">".repeat(2_000)),
            format!("{} x {}", "CASE WHEN ".repeat(2_000), "THEN 1 END ".repeat(2_000)),
            format!("SELECT 1 FROM {}", chain("t", ", ", 1_000)),
            format!("SELECT 1 FROM t {}", "CROSS JOIN t ".repeat(1_000)),
            chain("SELECT 1", " UNION ", 1_000),
            format!("x IN ({})", chain("1", ", ", 60_000)),
            format!("'{}'", "x".repeat(MOST_BYTES)),
        ] {
            let error = refused(&text);
            assert!(error.contains("line: ") && error.contains("; "), "{error}");
        }
    }
}
