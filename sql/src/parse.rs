//! Text to statements: the definition language on top of DataFusion's tokens, expressions and queries.
//!
//! Every statement of a file is read on its own, so that one fault does not hide the next. The grammar is in
//! `docs/language.md`; each statement's clauses may come in any order, each at most once.

mod contract;
mod cursor;
mod statement;
mod view;

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

pub use statement::{
    ContractStatement, DropStatement, EntityStatement, Events, InputStatement, Located, OutputColumn, PushedColumn,
    RuleStatement, SourceStatement, SpineStatement, Statement, TableStatement, ViewStatement, WindowsClause,
    WrittenWindow,
};

use crate::diagnostic::{Diagnostic, Position, SourceFile};
use crate::nesting::{self, TooMuch};
use cursor::Cursor;

/// What kinds of statement there are, for messages.
const STATEMENTS: &str =
    "CREATE EXTERNAL TABLE, CREATE SOURCE, CREATE ENTITY, CREATE FEATURE VIEW, CREATE CONTRACT, CREATE SPINE, DROP";

/// A file's statements, and the faults of those that could not be read.
#[derive(Debug)]
pub struct Parsed {
    /// The statements that could be read.
    pub statements: Vec<Statement>,
    /// The faults of the others.
    pub faults: Vec<Diagnostic>,
}

/// Reads a definition file.
pub fn parse(file: &SourceFile) -> Parsed {
    let mut parsed = Parsed { statements: Vec::new(), faults: Vec::new() };
    let too_much = |much: TooMuch| Diagnostic::new(file, much.at, much.message).help(much.help);
    if let Err(much) = nesting::check_file(&file.text) {
        parsed.faults.push(too_much(much));
        return parsed;
    }
    let tokens = match Tokenizer::new(&GenericDialect {}, &file.text).tokenize_with_location() {
        Ok(tokens) => tokens,
        Err(error) => {
            let at = Position { line: error.location.line, column: error.location.column };
            parsed.faults.push(Diagnostic::new(file, at, error.message));
            return parsed;
        }
    };
    for statement in tokens.split(|token| token.token == Token::SemiColon) {
        if statement.iter().all(|token| matches!(token.token, Token::Whitespace(_) | Token::EOF)) {
            continue;
        }
        // Before anything recurses into it.
        let read = nesting::check(statement).map_err(|much| Box::new(too_much(much)));
        match read.and_then(|()| parse_statement(file, statement)) {
            Ok(statements) => parsed.statements.extend(statements),
            Err(fault) => parsed.faults.push(*fault),
        }
    }
    parsed
}

/// The result of reading a part of a statement.
pub(crate) type Parse<T> = Result<T, Box<Diagnostic>>;

/// What a statement says; a view `AS PUSHED` is two: the source of its rows, and the view over it.
fn parse_statement(file: &SourceFile, tokens: &[TokenWithSpan]) -> Parse<Vec<Statement>> {
    let mut cursor = Cursor::new(file, tokens);
    if cursor.take_word("DROP") {
        return Ok(vec![Statement::Drop(statement::parse_drop(&mut cursor)?)]);
    }
    if !cursor.take_word("CREATE") {
        return Err(cursor.unexpected("a statement").help_boxed(STATEMENTS));
    }
    if cursor.peek_keyword(Keyword::EXTERNAL) {
        return Ok(vec![Statement::Table(statement::parse_table(file, tokens)?)]);
    }
    let statements = if cursor.take_word("SOURCE") {
        vec![Statement::Source(statement::parse_source(&mut cursor)?)]
    } else if cursor.take_word("ENTITY") {
        vec![Statement::Entity(statement::parse_entity(&mut cursor)?)]
    } else if cursor.take_words(&["FEATURE", "VIEW"]) {
        let (source, view) = view::parse_view(&mut cursor)?;
        source.map(Statement::Source).into_iter().chain([Statement::View(view)]).collect()
    } else if cursor.take_word("CONTRACT") {
        vec![Statement::Contract(contract::parse_contract(&mut cursor)?)]
    } else if cursor.take_word("SPINE") {
        vec![Statement::Spine(statement::parse_spine(&mut cursor)?)]
    } else {
        return Err(cursor.unexpected("what to create").help_boxed(STATEMENTS));
    };
    cursor.expect_end()?;
    Ok(statements)
}

/// Adds help to a boxed fault.
pub(crate) trait HelpBoxed {
    /// As [`Diagnostic::help`].
    fn help_boxed(self, help: impl Into<String>) -> Self;
}

impl HelpBoxed for Box<Diagnostic> {
    fn help_boxed(self, help: impl Into<String>) -> Self {
        Self::new((*self).help(help))
    }
}
