//! A place in a statement's tokens: words, names, intervals, types, and DataFusion's own expressions and queries.

use datafusion::sql::sqlparser::ast::{Expr, Query};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};
use springhouse_featurestore::definition::ColumnType;
use springhouse_featurestore::time::Span;

use super::{HelpBoxed, Located, Parse};
use crate::diagnostic::{Diagnostic, Position, SourceFile};

/// Other names that people use for the types.
const TYPE_ALIASES: [(&str, ColumnType); 16] = [
    ("BOOL", ColumnType::Boolean),
    ("INTEGER", ColumnType::Int32),
    ("INT2", ColumnType::Int16),
    ("INT4", ColumnType::Int32),
    ("INT8", ColumnType::Int64),
    ("UNSIGNED TINYINT", ColumnType::UInt8),
    ("INTEGER UNSIGNED", ColumnType::UInt32),
    ("REAL", ColumnType::Float32),
    ("FLOAT4", ColumnType::Float32),
    ("FLOAT8", ColumnType::Float64),
    ("DOUBLE PRECISION", ColumnType::Float64),
    ("TEXT", ColumnType::Utf8),
    ("STRING", ColumnType::Utf8),
    ("CHARACTER VARYING", ColumnType::Utf8),
    ("TIMESTAMPTZ", ColumnType::Timestamp),
    ("TIMESTAMP WITH TIME ZONE", ColumnType::Timestamp),
];

/// A reader of one statement.
pub(super) struct Cursor<'a> {
    file: &'a SourceFile,
    parser: Parser<'a>,
    end: Position,
}

const DIALECT: GenericDialect = GenericDialect {};

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a SourceFile, tokens: &[TokenWithSpan]) -> Self {
        let end = tokens.iter().rev().find(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF));
        let end = end
            .map_or(Position::default(), |token| Position { line: token.span.end.line, column: token.span.end.column });
        Self { file, parser: Parser::new(&DIALECT).with_tokens_with_locations(tokens.to_vec()), end }
    }

    /// The file that is read.
    pub(super) fn file(&self) -> &SourceFile {
        self.file
    }

    /// The place of the next token.
    pub(super) fn position(&self) -> Position {
        let token = self.parser.peek_token_ref();
        if token.token == Token::EOF {
            return self.end;
        }
        Position { line: token.span.start.line, column: token.span.start.column }
    }

    pub(super) fn fault(&self, at: Position, message: impl Into<String>) -> Box<Diagnostic> {
        Box::new(Diagnostic::new(self.file, at, message))
    }

    /// A fault at the next token.
    pub(super) fn unexpected(&self, expected: &str) -> Box<Diagnostic> {
        let found = match &self.parser.peek_token_ref().token {
            Token::EOF => "the end of the statement".to_owned(),
            token => format!("'{token}'"),
        };
        self.fault(self.position(), format!("expected {expected}, found {found}"))
    }

    pub(super) fn peek_keyword(&self, keyword: Keyword) -> bool {
        matches!(&self.parser.peek_token_ref().token, Token::Word(word) if word.keyword == keyword)
    }

    fn peek_word(&self, ahead: usize, word: &str) -> bool {
        matches!(&self.parser.peek_nth_token_ref(ahead).token,
            Token::Word(Word { value, quote_style: None, .. }) if value.eq_ignore_ascii_case(word))
    }

    /// Takes the word if it is next.
    pub(super) fn take_word(&mut self, word: &str) -> bool {
        self.take_words(&[word])
    }

    /// Takes the words if all of them are next.
    pub(super) fn take_words(&mut self, words: &[&str]) -> bool {
        let all = words.iter().enumerate().all(|(ahead, word)| self.peek_word(ahead, word));
        if all {
            for _ in words {
                self.parser.advance_token();
            }
        }
        all
    }

    pub(super) fn expect_words(&mut self, words: &[&str]) -> Parse<()> {
        if self.take_words(words) { Ok(()) } else { Err(self.unexpected(&words.join(" "))) }
    }

    pub(super) fn take(&mut self, token: &Token) -> bool {
        self.parser.consume_token(token)
    }

    pub(super) fn expect(&mut self, token: &Token) -> Parse<()> {
        if self.take(token) { Ok(()) } else { Err(self.unexpected(&format!("'{token}'"))) }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.parser.peek_token_ref().token == Token::EOF
    }

    pub(super) fn expect_end(&mut self) -> Parse<()> {
        if self.is_at_end() { Ok(()) } else { Err(self.unexpected("a clause of this statement or ';'")) }
    }

    /// A name; without quotes its letters are lower-cased, as DataFusion does.
    pub(super) fn name(&mut self, what: &str) -> Parse<Located<String>> {
        let at = self.position();
        match self.parser.peek_token_ref().token.clone() {
            Token::Word(word) => {
                self.parser.advance_token();
                let value = if word.quote_style.is_some() { word.value } else { word.value.to_lowercase() };
                Ok(Located { value, at })
            }
            _ => Err(self.unexpected(what)),
        }
    }

    /// Text in single quotes.
    pub(super) fn text(&mut self, what: &str) -> Parse<Located<String>> {
        let at = self.position();
        match self.parser.peek_token_ref().token.clone() {
            Token::SingleQuotedString(value) => {
                self.parser.advance_token();
                Ok(Located { value, at })
            }
            _ => Err(self.unexpected(what)),
        }
    }

    /// A positive interval in single quotes.
    pub(super) fn interval(&mut self) -> Parse<Located<Span>> {
        let text = self.text("an interval such as '10 minutes'")?;
        let span = Span::parse(&text.value).map_err(|error| self.fault(text.at, error.to_string()))?;
        if span == Span::ZERO {
            return Err(self
                .fault(text.at, format!("the interval '{}' is not positive", text.value))
                .help_boxed("write an interval such as '10 minutes'"));
        }
        Ok(Located { value: span, at: text.at })
    }

    /// A number.
    pub(super) fn number(&mut self, what: &str) -> Parse<Located<f64>> {
        let at = self.position();
        match self.parser.peek_token_ref().token.clone() {
            Token::Number(text, _) => {
                let value = text.parse().map_err(|_| self.unexpected(what))?;
                self.parser.advance_token();
                Ok(Located { value, at })
            }
            _ => Err(self.unexpected(what)),
        }
    }

    /// A column type.
    pub(super) fn column_type(&mut self) -> Parse<ColumnType> {
        let at = self.position();
        let accepted =
            || format!("{}; of features also lists such as FLOAT[]", ColumnType::ALL.map(|(_, name)| name).join(", "));
        if matches!(self.parser.peek_token_ref().token, Token::Comma | Token::RParen | Token::EOF) {
            return Err(self.unexpected("a type").help_boxed(accepted()));
        }
        let parsed = self.parser.parse_data_type().map_err(|error| self.sql_fault(at, &error))?;
        let text = parsed.to_string().to_uppercase();
        let scalar = |text: &str| {
            let mut known = ColumnType::ALL.iter().map(|(kind, name)| (*name, *kind)).chain(TYPE_ALIASES);
            known.find(|(name, _)| *name == text).map(|(_, kind)| kind)
        };
        let known = match text.strip_suffix("[]") {
            Some(element) => scalar(element).and_then(ColumnType::list_of),
            None => scalar(&text),
        };
        known.ok_or_else(|| {
            self.fault(at, format!("{text} is not a type of keys, features, requests or outputs"))
                .help_boxed(accepted())
        })
    }

    /// A SQL query, to the end of the statement.
    pub(super) fn query(&mut self) -> Parse<Located<Box<Query>>> {
        let at = self.position();
        let value = self.parser.parse_query().map_err(|error| self.sql_fault(at, &error))?;
        Ok(Located { value, at })
    }

    /// A SQL expression.
    pub(super) fn expression(&mut self) -> Parse<Located<Expr>> {
        let at = self.position();
        let value = self.parser.parse_expr().map_err(|error| self.sql_fault(at, &error))?;
        Ok(Located { value, at })
    }

    fn sql_fault(&self, start: Position, error: &ParserError) -> Box<Diagnostic> {
        sql_fault(self.file, start, error)
    }

    /// `( item , item , ... )`, at least one.
    pub(super) fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Parse<T>) -> Parse<Vec<T>> {
        self.expect(&Token::LParen)?;
        let mut items = vec![item(self)?];
        while self.take(&Token::Comma) {
            items.push(item(self)?);
        }
        self.expect(&Token::RParen)?;
        Ok(items)
    }
}

/// A fault from the SQL parser's own message, which ends with the place where it has one.
pub(super) fn sql_fault(file: &SourceFile, start: Position, error: &ParserError) -> Box<Diagnostic> {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.clone(),
        ParserError::RecursionLimitExceeded => "the expression is nested too deeply".to_owned(),
    };
    let place = text.rsplit_once(" at Line: ").and_then(|(message, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((message.to_owned(), Position { line: line.parse().ok()?, column: column.parse().ok()? }))
    });
    let (message, at) = place.unwrap_or((text, start));
    let mut letters = message.chars();
    let lower: Option<String> = letters.next().map(|first| first.to_lowercase().chain(letters).collect());
    Box::new(Diagnostic::new(file, at, lower.unwrap_or_default()))
}
