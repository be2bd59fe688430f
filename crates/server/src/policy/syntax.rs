//! Expressions as `pg_get_expr` prints them: bracketed throughout, so that no precedence has to be
//! known. Whatever is not certain to be understood is not understood.

use std::ops::Range;

use super::token::{Token, tokens};

/// Deeper nesting is not looked into.
const MAX_DEPTH: usize = 64;

/// An expression and where it stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) span: Range<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NodeKind {
    /// A column, also as `table.column`.
    Column(String),
    Text(String),
    Number(String),
    Bool(bool),
    Null,
    /// A function, as `schema.name` where it is not Postgres's own; also `coalesce`, `nullif` and
    /// `current_user`.
    Call {
        schema: Option<String>,
        name: String,
        arguments: Vec<Node>,
    },
    Cast(Box<Node>, String),
    Operator(String, Box<Node>, Box<Node>),
    /// `left = any (right)`
    Any(String, Box<Node>, Box<Node>),
    Not(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
    /// `is [not] null`, `true`, `false`, `unknown`
    Is {
        of: Box<Node>,
        what: Is,
        negated: bool,
    },
    Array(Vec<Node>),
    /// `(select expression as name)`
    Select(Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Is {
    Null,
    True,
    False,
    Unknown,
}

impl Node {
    /// The expressions that it is made of.
    pub(super) fn parts(&self) -> Vec<&Node> {
        use NodeKind as N;
        match &self.kind {
            N::Column(_) | N::Text(_) | N::Number(_) | N::Bool(_) | N::Null => Vec::new(),
            N::Call { arguments: parts, .. } | N::And(parts) | N::Or(parts) | N::Array(parts) => {
                parts.iter().collect()
            }
            N::Cast(part, _) | N::Not(part) | N::Select(part) | N::Is { of: part, .. } => {
                vec![part]
            }
            N::Operator(_, left, right) | N::Any(_, left, right) => vec![left, right],
        }
    }

    pub(super) fn has_column(&self) -> bool {
        matches!(self.kind, NodeKind::Column(_)) || self.parts().iter().any(|n| n.has_column())
    }
}

/// The expression that the text is; `None` if it is not understood.
pub(super) fn parse(text: &str) -> Option<Node> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    let node = parser.expression()?;
    (parser.at == tokens.len()).then_some(node)
}

struct Parser<'a> {
    tokens: &'a [(Token, Range<usize>)],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|(token, _)| token)
    }

    fn is_word(&self, ahead: usize, word: &str) -> bool {
        matches!(self.peek(ahead), Some(Token::Word(found)) if found == word)
    }

    fn is_sign(&self, ahead: usize, sign: &str) -> bool {
        matches!(self.peek(ahead), Some(Token::Sign(found)) if found == sign)
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self.is_word(0, word);
        self.at += usize::from(found);
        found
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(0, sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Option<()> {
        self.sign(sign).then_some(())
    }

    /// The node of what was read since the token `first`.
    fn node(&self, first: usize, kind: NodeKind) -> Option<Node> {
        let start = self.tokens.get(first)?.1.start;
        let end = self.tokens.get(self.at.checked_sub(1)?)?.1.end;
        Some(Node { kind, span: start..end })
    }

    /// What stands between brackets: one operand, or operands with operators of one kind.
    fn expression(&mut self) -> Option<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let first = self.at;
        let node = if self.word("not") {
            let operand = self.primary()?;
            self.node(first, NodeKind::Not(Box::new(operand)))?
        } else {
            let left = self.primary()?;
            self.continued(first, left)?
        };
        self.depth -= 1;
        Some(node)
    }

    fn continued(&mut self, first: usize, left: Node) -> Option<Node> {
        for (word, make) in [("and", NodeKind::And as fn(_) -> _), ("or", NodeKind::Or)] {
            if self.is_word(0, word) {
                let mut operands = vec![left];
                while self.word(word) {
                    operands.push(self.primary()?);
                }
                return self.node(first, make(operands));
            }
        }
        if self.word("is") {
            let negated = self.word("not");
            let Some(Token::Word(what)) = self.peek(0) else { return None };
            let what = match what.as_str() {
                "null" => Is::Null,
                "true" => Is::True,
                "false" => Is::False,
                "unknown" => Is::Unknown,
                _ => return None,
            };
            self.at += 1;
            return self.node(first, NodeKind::Is { of: Box::new(left), what, negated });
        }
        let Some(Token::Sign(operator)) = self.peek(0) else { return Some(left) };
        if matches!(operator.as_str(), ")" | "]" | "," | ";") {
            return Some(left);
        }
        if matches!(operator.as_str(), "(" | "[" | "." | "::" | ":=" | ":") {
            return None;
        }
        let operator = operator.clone();
        self.at += 1;
        if self.word("any") {
            self.expect("(")?;
            // Of the rows of a sub-select, not of an array.
            if self.is_word(0, "select") {
                return None;
            }
            let right = self.expression()?;
            self.expect(")")?;
            return self.node(first, NodeKind::Any(operator, Box::new(left), Box::new(right)));
        }
        let right = self.primary()?;
        self.node(first, NodeKind::Operator(operator, Box::new(left), Box::new(right)))
    }

    /// An operand with the casts that follow it.
    fn primary(&mut self) -> Option<Node> {
        let first = self.at;
        let mut node = self.atom()?;
        while self.sign("::") {
            let name = self.type_name()?;
            node = self.node(first, NodeKind::Cast(Box::new(node), name))?;
        }
        (!self.is_sign(0, "[")).then_some(node)
    }

    fn atom(&mut self) -> Option<Node> {
        let first = self.at;
        let token = self.peek(0)?.clone();
        self.at += 1;
        let kind = match token {
            Token::Text(text) => NodeKind::Text(text),
            Token::Number(number) => NodeKind::Number(number),
            Token::Sign(sign) if sign == "(" => return self.bracketed(first),
            Token::Sign(_) => return None,
            Token::Word(word) => match word.as_str() {
                "true" => NodeKind::Bool(true),
                "false" => NodeKind::Bool(false),
                "null" => NodeKind::Null,
                "array" => {
                    self.expect("[")?;
                    NodeKind::Array(self.list("]")?)
                }
                "current_user" | "session_user" | "user" => {
                    NodeKind::Call { schema: None, name: word, arguments: Vec::new() }
                }
                "case" | "exists" | "row" | "select" | "not" | "any" | "all" | "cast"
                | "current_date" | "current_time" | "current_timestamp" | "localtime"
                | "localtimestamp" | "current_role" | "current_catalog" | "current_schema"
                | "interval" | "timestamp" | "time" | "distinct" | "in" | "between" => {
                    return None;
                }
                _ => return self.named(first, word),
            },
            Token::Quoted(name) => return self.named(first, name),
        };
        self.node(first, kind)
    }

    /// After an opening bracket.
    fn bracketed(&mut self, first: usize) -> Option<Node> {
        if self.word("select") {
            let inner = self.expression()?;
            if self.word("as") {
                self.name()?;
            }
            self.expect(")")?;
            return self.node(first, NodeKind::Select(Box::new(inner)));
        }
        let inner = self.expression()?;
        self.expect(")")?;
        // The brackets belong to it.
        self.node(first, inner.kind)
    }

    /// A column or a function, after its first name.
    fn named(&mut self, first: usize, name: String) -> Option<Node> {
        let (mut schema, mut name) = (None, name);
        if self.sign(".") {
            schema = Some(std::mem::replace(&mut name, self.name()?));
        }
        if self.is_sign(0, ".") {
            return None;
        }
        if self.sign("(") {
            let arguments = self.list(")")?;
            return self.node(first, NodeKind::Call { schema, name, arguments });
        }
        self.node(first, NodeKind::Column(name))
    }

    fn name(&mut self) -> Option<String> {
        let (Token::Word(name) | Token::Quoted(name)) = self.peek(0)? else { return None };
        let name = name.clone();
        self.at += 1;
        Some(name)
    }

    fn list(&mut self, end: &str) -> Option<Vec<Node>> {
        let mut items = Vec::new();
        if self.sign(end) {
            return Some(items);
        }
        loop {
            items.push(self.expression()?);
            if self.sign(end) {
                return Some(items);
            }
            self.expect(",")?;
        }
    }

    /// A type as `format_type` prints it, without its modifier.
    fn type_name(&mut self) -> Option<String> {
        let quoted = matches!(self.peek(0)?, Token::Quoted(_));
        let mut name = self.printed_name()?;
        if self.sign(".") {
            name = format!("{name}.{}", self.printed_name()?);
        } else if !quoted {
            let more: &[&str] = match name.as_str() {
                "character" | "bit" => &["varying"],
                "double" => &["precision"],
                _ => &[],
            };
            for word in more {
                if self.word(word) {
                    name = format!("{name} {word}");
                }
            }
        }
        if self.sign("(") {
            while matches!(self.peek(0)?, Token::Number(_)) || self.is_sign(0, ",") {
                self.at += 1;
            }
            self.expect(")")?;
        }
        if matches!(name.as_str(), "timestamp" | "time")
            && (self.word("with") || self.word("without"))
        {
            // Not compared here, in any case.
            (self.word("time") && self.word("zone")).then_some(())?;
            name.push_str(" zone");
        }
        while self.is_sign(0, "[") && self.is_sign(1, "]") {
            self.at += 2;
            name.push_str("[]");
        }
        Some(name)
    }

    /// A name as Postgres prints it, in quotes if it has to be.
    fn printed_name(&mut self) -> Option<String> {
        let name = match self.peek(0)? {
            Token::Word(name) => name.clone(),
            Token::Quoted(name) => format!("\"{}\"", name.replace('"', "\"\"")),
            _ => return None,
        };
        self.at += 1;
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(text: &str) -> NodeKind {
        parse(text).unwrap_or_else(|| panic!("{text} is understood")).kind
    }

    #[test]
    fn the_usual_policies_are_understood() {
        for text in [
            "true",
            "(user_id = auth.uid())",
            "(( SELECT auth.uid() AS uid) = user_id)",
            "((auth.jwt() ->> 'tenant'::text) = (tenant)::text)",
            "((tenant = 'a'::text) AND published AND (NOT hidden))",
            "(status = ANY (ARRAY['open'::public.status, 'Paid'::public.\"Status\"]))",
            "(team_id = ANY ((( SELECT auth.teams() AS teams))::uuid[]))",
            "((owner)::name = CURRENT_USER)",
            "((deleted_at IS NULL) OR (x IS NOT TRUE))",
            "(COALESCE((auth.jwt() ->> 'x'::text), ''::text) <> 'y'::text)",
            "((n)::bigint >= '-5'::bigint)",
            "((name)::character varying(20) = 'x'::character varying)",
            "(notes.user_id = auth.uid())",
            "is_admin()",
        ] {
            assert!(parse(text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_not_certain_is_not_understood() {
        for text in [
            "",
            "(a = b",
            "a = b)",
            "(a = b OR c)",
            "(EXISTS ( SELECT 1 FROM members m))",
            "(id IN ( SELECT m.id FROM members m))",
            "(id = ANY ( SELECT auth.teams() AS teams))",
            "(( SELECT m.x FROM m) = id)",
            "CASE WHEN a THEN b ELSE c END",
            "(a[1] = 2)",
            "(a = b COLLATE \"C\")",
            "(a OPERATOR(public.=) b)",
            "(created_at > (CURRENT_TIMESTAMP - '1 day'::interval))",
            "(a IS DISTINCT FROM b)",
            "(ROW(a, b) = ROW(c, d))",
            "(- a)",
            "(a.b.c = 1)",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_expression_knows_where_it_stands() {
        let text = "(( SELECT auth.uid() AS uid) = user_id)";
        let NodeKind::Operator(operator, left, right) = kind(text) else { panic!("an operator") };

        assert_eq!(operator, "=");
        assert_eq!(&text[left.span.clone()], "( SELECT auth.uid() AS uid)");
        assert_eq!(&text[right.span.clone()], "user_id");
        assert!(right.has_column() && !left.has_column());
    }

    #[test]
    fn deep_nesting_is_given_up() {
        assert_eq!(parse(&format!("{}a{}", "(".repeat(10_000), ")".repeat(10_000))), None);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "[a-z'\"()=:,.\\[\\] $]*") {
            let _ = parse(&text);
        }
    }
}
