//! How long and how deeply nested SQL text may be. The parser, the planner and every pass over an expression recurse into
//! it, a chain such as `a OR b OR c` included, which nests once for each of its terms: text is measured in tokens before
//! any of them sees it, wherever it comes from.
//!
//! A chain's height is that of the tree it becomes: its operators, and the tallest of what stands in its brackets. What
//! stands beside one another (items of a list, clauses, the branches of a `CASE`) does not add up.
//!
//! The parser also reads some text twice where it does not end well, first as what a word announces, then as a function of that
//! name: each such word within another doubles its work. They are counted as they stand one in another.

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

/// The most `INTERVAL`s one in another: the parser reads each twice, and counts no levels between them.
const MOST_INTERVALS: usize = 3;

/// The most brackets one in another of those that the parser may read twice ([`readings`]).
const MOST_READ_TWICE: usize = 10;

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
        let top = levels.top();
        if top.intervals_around + top.intervals > MOST_INTERVALS {
            let message = format!("the expression has more than {MOST_INTERVALS} INTERVALs one in another");
            return Err(TooMuch::new(place(token), message, "write one literal: INTERVAL '1 day 2 hours'"));
        }
        if top.read_twice > MOST_READ_TWICE {
            let message =
                format!("the expression has more than {MOST_READ_TWICE} CAST(, NOT (, IN ( or the like one in another");
            return Err(TooMuch::new(place(token), message, "compute the inner ones in a subquery, and name them"));
        }
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
    /// `INTERVAL`s of the term that is read that have no literal yet.
    intervals: usize,
    /// Those that have one: what follows by `AT TIME ZONE` is read within them all the same.
    with_literal: usize,
    /// Those without one of the groups around.
    intervals_around: usize,
    /// This one and those around that the parser may read twice.
    read_twice: usize,
}

impl Group {
    fn new(opened: Opened) -> Self {
        let (connectives, terms, operators, inner, before, joins, tables) = Default::default();
        let (intervals, with_literal, intervals_around, read_twice) = Default::default();
        Self {
            opened,
            connectives,
            terms,
            operators,
            inner,
            before,
            joins,
            tables,
            intervals,
            with_literal,
            intervals_around,
            read_twice,
        }
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
        (self.operators, self.inner, self.intervals, self.with_literal) = (0, 0, 0, 0);
        self.connectives += 1;
    }

    /// The next item begins.
    fn next(&mut self) {
        self.before = self.before.max(self.item());
        (self.connectives, self.terms, self.operators, self.inner) = (0, 0, 0, 0);
        (self.intervals, self.with_literal) = (0, 0);
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
    /// Whether a cast's type comes next: after `::`, or `AS`.
    after_cast: bool,
    /// How often more than once what stands in a bracket may be read that comes next.
    again: usize,
}

impl Default for Levels {
    fn default() -> Self {
        Self {
            groups: vec![Group::new(Opened::Bracket)],
            selects: 0,
            froms: 0,
            distinct: false,
            after_cast: false,
            again: 0,
        }
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

    /// A group begins within the one that is read.
    fn open(&mut self, opened: Opened, again: usize) {
        let top = *self.top();
        self.groups.push(Group {
            intervals_around: top.intervals_around + top.intervals,
            read_twice: top.read_twice + again,
            ..Group::new(opened)
        });
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
        let is_space = matches!(token, Token::Whitespace(_));
        let after_distinct = is_space && self.distinct;
        let again = self.again;
        if !is_space {
            self.again = 0;
        }
        match token {
            Token::Word(word) if word.quote_style.is_none() => self.take_word(word),
            Token::LParen => self.open(Opened::Bracket, again),
            Token::LBracket | Token::LBrace => {
                self.top().operators += 1;
                self.open(Opened::Bracket, 0);
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
            Token::Word(_) | Token::Whitespace(_) | Token::Period => {}
            _ if is_operand(token) => {
                let top = self.top();
                top.with_literal += std::mem::take(&mut top.intervals);
            }
            _ => {
                let top = self.top();
                top.operators += 1;
                if top.intervals == 0 {
                    top.with_literal = 0;
                }
            }
        }
        let distinct = matches!(token, Token::Word(Word { keyword: Keyword::DISTINCT, .. }));
        self.distinct = distinct || after_distinct;
        if !is_space {
            self.after_cast =
                matches!(token, Token::DoubleColon | Token::Word(Word { keyword: Keyword::AS, quote_style: None, .. }));
        }
    }

    fn take_word(&mut self, word: &Word) {
        let (distinct, after_cast) = (self.distinct, self.after_cast);
        self.again = readings(word.keyword) - 1;
        let top = self.top();
        match word.keyword {
            // The type of a cast has nothing to read again.
            Keyword::INTERVAL if after_cast => {}
            Keyword::INTERVAL => top.intervals += 1,
            Keyword::AT => {
                top.operators += 1;
                top.intervals += std::mem::take(&mut top.with_literal);
            }
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
            Keyword::CASE => self.open(Opened::Case, 0),
            Keyword::END if top.opened == Opened::Case => self.close(),
            _ => {}
        }
    }
}

/// How often the parser reads what stands in a bracket after a word: where it cannot be what the word announces, it is read again
/// as the arguments of a function, and after `IN` as a list.
fn readings(keyword: Keyword) -> usize {
    match keyword {
        Keyword::POSITION => 3,
        Keyword::ARRAY
        | Keyword::CASE
        | Keyword::CAST
        | Keyword::CEIL
        | Keyword::CONVERT
        | Keyword::CURRENT_DATE
        | Keyword::CURRENT_TIME
        | Keyword::CURRENT_TIMESTAMP
        | Keyword::EXISTS
        | Keyword::EXTRACT
        | Keyword::FLOOR
        | Keyword::IN
        | Keyword::LOCALTIME
        | Keyword::LOCALTIMESTAMP
        | Keyword::MATCH
        | Keyword::NOT
        | Keyword::OVERLAY
        | Keyword::SAFE_CAST
        | Keyword::STRUCT
        | Keyword::SUBSTR
        | Keyword::SUBSTRING
        | Keyword::TRIM
        | Keyword::TRY_CAST
        | Keyword::TRY_CONVERT => 2,
        _ => 1,
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
            chain("t > x - INTERVAL '1 day'", " AND ", 400),
            chain("INTERVAL '1' DAY", " + ", 400),
            "INTERVAL (INTERVAL (INTERVAL '1' DAY))".to_owned(),
            format!("x IN ({})", chain("CAST(FLOOR(a) AS INT)", ", ", 5_000)),
            format!("{}x{}", "NOT (".repeat(10), ")".repeat(10)),
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

    /// In a thread with the stack that the parser has, which ends at once.
    fn refused_at_once(text: String) -> String {
        let (tell, told) = std::sync::mpsc::channel();
        let parse = move || {
            let files = [crate::diagnostic::SourceFile { name: "it.sql".to_owned(), text: text.clone() }];
            let parsed = crate::parse::parse(&files[0]);
            assert!(!parsed.faults.is_empty(), "{}", &text[..text.len().min(60)]);
            tell.send(refused(&text)).expect("somebody waits");
        };
        std::thread::Builder::new().stack_size(STACK_BYTES).spawn(parse).expect("a thread");
        told.recv_timeout(std::time::Duration::from_secs(20)).expect("refused at once")
    }

    #[test]
    fn what_the_parser_would_read_again_and_again_is_refused_by_name_and_place() {
        for words in [60, 50_000] {
            for (word, name) in [
                ("INTERVAL ", "INTERVALs"),
                ("INTERVAL YEAR ", "INTERVALs"),
                ("INTERVAL (", "INTERVALs"),
                ("INTERVAL SECOND (", "INTERVALs"),
                ("INTERVAL - ", "INTERVALs"),
                ("INTERVAL CASE ", "INTERVALs"),
                ("INTERVAL f(", "INTERVALs"),
                ("INTERVAL INTERVAL INTERVAL - 1 AT TIME ZONE ", "INTERVALs"),
                ("NOT (", "CAST("),
                ("CAST(", "CAST("),
                ("FLOOR (", "CAST("),
                ("POSITION(", "CAST("),
                ("x IN (", "CAST("),
                ("a.SUBSTRING(", "CAST("),
                ("CASE (", "CAST("),
                ("CURRENT_DATE(", "CAST("),
                ("NOT NOT (", "CAST("),
            ] {
                // No longer than what is read at all.
                let words = words.min(1_000_000 / word.len());
                let text = format!("CREATE SOURCE s EVENT TIME t AS SELECT {} ] FROM x;", word.repeat(words));
                let error = refused_at_once(text);
                assert!(error.contains(name) && error.contains("line: 1, column: "), "{word}: {error}");
            }
        }
        for (word, words) in
            [("NOT ", 100_000), ("- ", 100_000), ("DATE ", 100_000), ("EXISTS ", 100_000), ("~", 100_000)]
        {
            refused_at_once(format!("CREATE SOURCE s EVENT TIME t AS SELECT {} ] FROM x;", word.repeat(words)));
        }
    }
}
