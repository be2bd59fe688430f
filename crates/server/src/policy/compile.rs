//! From a policy's condition to a formula that the hub evaluates, if all of it is of the kind where
//! that is certain to come to the same as in Postgres.

use tide_feed::catalog::{ColumnAccess, Function};
use tide_feed::event::Kind;
use tide_feed::labels;

use super::claims::{Functions, is_iso};
use super::formula::{Column, Comparison, Formula, Operand};
use super::syntax::{Is, Node, NodeKind, parse};
use crate::filter::index_key;

/// An expression over the claims, to be evaluated for each client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub sql: Box<str>,
    /// Of its value, or of the members of the array that it is.
    pub kind: Kind,
    pub is_array: bool,
}

/// Makes formulas of the conditions of one table.
pub(super) struct Compiler<'a> {
    pub(super) columns: &'a [ColumnAccess],
    pub(super) functions: &'a [Function],
    /// Columns whose equal values may be different texts.
    pub(super) nondeterministic: &'a [i16],
    pub(super) claims: Vec<Claim>,
}

/// Why a condition is left to Postgres.
type Reason = String;

impl Compiler<'_> {
    pub(super) fn compile(&mut self, condition: &str) -> Result<Formula, Reason> {
        let node = parse(condition).ok_or("it is not of the form that is looked into")?;
        self.condition(&node, condition)
    }

    fn condition(&mut self, node: &Node, text: &str) -> Result<Formula, Reason> {
        use NodeKind as N;
        match &node.kind {
            N::Bool(value) => return Ok(Formula::Constant(Some(*value))),
            N::Null => return Ok(Formula::Constant(None)),
            _ if !node.has_column() => {
                let claim = self.claim(node, text)?;
                let is_flag =
                    self.claims.get(claim).is_some_and(|c| c.kind == Kind::Bool && !c.is_array);
                return if is_flag { Ok(Formula::Claim(claim)) } else { Err(unsuitable()) };
            }
            _ => {}
        }
        match &node.kind {
            N::Not(part) => Ok(Formula::Not(Box::new(self.condition(part, text)?))),
            N::And(parts) => Ok(and(self.conditions(parts, text)?)),
            N::Or(parts) => Ok(or(self.conditions(parts, text)?)),
            N::Column(name) => {
                let column = self.column(name)?;
                let is_flag = column.type_sql == "boolean";
                if is_flag { Ok(Formula::Flag(column.attnum)) } else { Err(unsuitable()) }
            }
            N::Is { of, what, negated } => self.is(of, *what, *negated, text),
            N::Operator(operator, left, right) => self.comparison(operator, left, right, text),
            N::Any(operator, left, right) if operator == "=" => self.any(left, right, text),
            _ => Err(unsuitable()),
        }
    }

    fn conditions(&mut self, nodes: &[Node], text: &str) -> Result<Vec<Formula>, Reason> {
        nodes.iter().map(|node| self.condition(node, text)).collect()
    }

    fn is(&mut self, of: &Node, what: Is, negated: bool, text: &str) -> Result<Formula, Reason> {
        let formula = match (what, &of.kind) {
            // A composite of NULLs is null to SQL.
            (Is::Null, NodeKind::Column(name)) => {
                let column = self.column(name)?;
                if column.kind == Kind::Other {
                    return Err(unsuitable());
                }
                Formula::IsNull(column.attnum)
            }
            (Is::Null | Is::Unknown, _) => return Err(unsuitable()),
            (Is::True, _) => Formula::Is(Box::new(self.condition(of, text)?), true),
            (Is::False, _) => Formula::Is(Box::new(self.condition(of, text)?), false),
        };
        Ok(if negated { Formula::Not(Box::new(formula)) } else { formula })
    }

    fn comparison(
        &mut self,
        operator: &str,
        left: &Node,
        right: &Node,
        text: &str,
    ) -> Result<Formula, Reason> {
        use Comparison::{Eq, Ge, Gt, Le, Lt, Ne};
        let (comparison, turned) = match operator {
            "=" => (Eq, Eq),
            "<>" => (Ne, Ne),
            "<" => (Lt, Gt),
            "<=" => (Le, Ge),
            ">" => (Gt, Lt),
            ">=" => (Ge, Le),
            _ => return Err(format!("it uses the operator {operator}")),
        };
        let (column, value, comparison) = match (left.has_column(), right.has_column()) {
            (true, false) => (left, right, comparison),
            (false, true) => (right, left, turned),
            _ => return Err("it compares columns with one another".to_owned()),
        };
        let (column, type_name) = self.comparable(column)?;
        let is_ordered = matches!(column.kind, Kind::Int | Kind::Date);
        if !matches!(comparison, Eq | Ne) && !is_ordered {
            return Err(format!("values of type {type_name} are not put in order here"));
        }
        let operand = self.operand(value, &type_name, column, text)?;
        Ok(Formula::Compare(column, comparison, operand))
    }

    fn any(&mut self, left: &Node, right: &Node, text: &str) -> Result<Formula, Reason> {
        if !left.has_column() || right.has_column() {
            return Err(unsuitable());
        }
        let (column, type_name) = self.comparable(left)?;
        if let NodeKind::Array(members) = &right.kind {
            let operands = members.iter().map(|one| self.operand(one, &type_name, column, text));
            return Ok(Formula::Any(column, operands.collect::<Result<_, _>>()?));
        }
        let place = self.claim(right, text)?;
        let fits = self
            .claims
            .get(place)
            .is_some_and(|claim| claim.is_array && claim.kind == key_kind(column.kind, &type_name));
        if fits { Ok(Formula::Any(column, vec![Operand::Claim(place)])) } else { Err(unsuitable()) }
    }

    fn column(&self, name: &str) -> Result<&ColumnAccess, Reason> {
        let mut columns = self.columns.iter();
        columns.find(|column| column.name == name).ok_or_else(|| format!("{name} is no column"))
    }

    /// A column that can be compared here, and the type as which it is: two values are equal exactly
    /// if their texts are.
    fn comparable(&self, node: &Node) -> Result<(Column, String), Reason> {
        let (name, cast) = match &node.kind {
            NodeKind::Column(name) => (name, None),
            NodeKind::Cast(inner, cast) => match &inner.kind {
                NodeKind::Column(name) => (name, Some(cast.as_str())),
                _ => return Err(unsuitable()),
            },
            _ => return Err(unsuitable()),
        };
        let column = self.column(name)?;
        let own = column.type_sql.split('(').next().unwrap_or_default();
        let compared = Column { attnum: column.attnum, kind: column.kind };
        let unfit = || Err(format!("column {name} is compared as {}", cast.unwrap_or(own)));
        if column.kind == Kind::Text && self.nondeterministic.contains(&column.attnum) {
            return Err(format!("column {name} has a collation that is not deterministic"));
        }
        let is_text = matches!(own, "text" | "character varying");
        let width = |name: &str| ["smallint", "integer", "bigint"].iter().position(|t| *t == name);
        match (own, cast) {
            ("boolean" | "uuid" | "date" | "text", None) => Ok((compared, own.to_owned())),
            (_, None) if width(own).is_some() => Ok((compared, "bigint".to_owned())),
            (_, Some(wider)) if width(own).is_some() && width(wider) >= width(own) => {
                Ok((compared, "bigint".to_owned()))
            }
            (_, Some("text")) if is_text => Ok((compared, "text".to_owned())),
            ("uuid" | "boolean", Some("text")) => Ok((compared, "text".to_owned())),
            (_, Some("text")) if width(own).is_some() => Ok((compared, "text".to_owned())),
            (_, None) if column.kind == Kind::Enum => Ok((compared, own.to_owned())),
            _ => unfit(),
        }
    }

    /// What a column that is compared as this type is compared with.
    fn operand(
        &mut self,
        node: &Node,
        type_name: &str,
        column: Column,
        text: &str,
    ) -> Result<Operand, Reason> {
        let kind = key_kind(column.kind, type_name);
        if let Some(key) = constant(node, type_name, kind) {
            return Ok(Operand::Constant(match key {
                Some(name) if kind == Kind::Enum => {
                    let label = self.label(column, &name);
                    Some(label.ok_or("it compares with a label that the type does not have")?)
                }
                key => key,
            }));
        }
        let place = self.claim(node, text)?;
        let fits = self.claims.get(place).is_some_and(|c| !c.is_array && c.kind == kind);
        if fits { Ok(Operand::Claim(place)) } else { Err(unsuitable()) }
    }

    /// What stands for the label of this name.
    fn label(&self, column: Column, name: &[u8]) -> Option<Box<[u8]>> {
        let labels = &self.columns.iter().find(|one| one.attnum == column.attnum)?.labels;
        let (oid, _) = labels.iter().find(|(_, label)| label.as_bytes() == name)?;
        Some(labels::key(*oid).into())
    }

    /// The place of an expression over the claims.
    fn claim(&mut self, node: &Node, text: &str) -> Result<usize, Reason> {
        let type_name = Functions(self.functions).type_of(node)?;
        let (element, is_array) = match type_name.strip_suffix("[]") {
            Some(element) => (element, true),
            None => (&*type_name, false),
        };
        let kind = match element {
            "boolean" => Kind::Bool,
            "smallint" | "integer" | "bigint" => Kind::Int,
            "uuid" => Kind::Uuid,
            "date" => Kind::Date,
            "text" => Kind::Text,
            _ => return Err(format!("it compares with a value of type {type_name}")),
        };
        let sql = text.get(node.span.clone()).ok_or_else(unsuitable)?;
        let claim = Claim { sql: sql.into(), kind, is_array };
        let known = self.claims.iter().position(|other| *other == claim);
        Ok(known.unwrap_or_else(|| {
            self.claims.push(claim);
            self.claims.len() - 1
        }))
    }
}

/// The kind of the keys that a column's values have when it is compared as this type.
fn key_kind(column: Kind, type_name: &str) -> Kind {
    // The texts of numbers, truth values and uuids are their keys.
    if type_name == "text" { Kind::Text } else { column }
}

/// The key of a constant of the type; `None` if it is none, or not printed as expected.
fn constant(node: &Node, type_name: &str, kind: Kind) -> Option<Option<Box<[u8]>>> {
    let (value, cast) = match &node.kind {
        NodeKind::Cast(inner, cast) => (&inner.kind, Some(cast.as_str())),
        kind => (kind, None),
    };
    let is_integer = |name: &str| matches!(name, "smallint" | "integer" | "bigint");
    let fits = match cast {
        None => true,
        Some(cast) if kind == Kind::Int => is_integer(cast),
        Some(cast) => cast == type_name,
    };
    if !fits {
        return None;
    }
    let json = match value {
        NodeKind::Null if cast.is_some() => return Some(None),
        NodeKind::Bool(value) if kind == Kind::Bool && cast.is_none() => value.to_string(),
        NodeKind::Number(digits) if kind == Kind::Int => digits.clone(),
        NodeKind::Text(digits) if kind == Kind::Int && cast.is_some() => digits.clone(),
        NodeKind::Text(text) if cast.is_some() => {
            let is_canonical = match kind {
                Kind::Text | Kind::Enum => true,
                Kind::Uuid => {
                    text.len() == 36
                        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
                }
                Kind::Date => is_iso(text),
                _ => false,
            };
            if !is_canonical {
                return None;
            }
            serde_json::to_string(text).ok()?
        }
        _ => return None,
    };
    Some(Some(index_key(kind, json.as_bytes())?.as_ref().into()))
}

pub(super) fn and(parts: Vec<Formula>) -> Formula {
    combine(parts, Formula::Constant(Some(true)), Formula::Constant(Some(false)), Formula::And)
}

pub(super) fn or(parts: Vec<Formula>) -> Formula {
    combine(parts, Formula::Constant(Some(false)), Formula::Constant(Some(true)), Formula::Or)
}

/// Leaves out what changes nothing; `decisive` decides alone.
fn combine(
    mut parts: Vec<Formula>,
    neutral: Formula,
    decisive: Formula,
    make: impl FnOnce(Vec<Formula>) -> Formula,
) -> Formula {
    if parts.contains(&decisive) {
        return decisive;
    }
    parts.retain(|part| *part != neutral);
    match parts.len() {
        0 => neutral,
        1 => parts.remove(0),
        _ => make(parts),
    }
}

fn unsuitable() -> Reason {
    "it is not of the form that is looked into".to_owned()
}

#[cfg(test)]
mod tests {
    use Comparison::{Eq, Ne};

    use super::*;

    fn column(attnum: i16, name: &str, type_sql: &str, kind: Kind) -> ColumnAccess {
        ColumnAccess {
            attnum,
            name: name.into(),
            type_name: type_sql.into(),
            type_sql: type_sql.into(),
            kind,
            readable: true,
            primary_key: false,
            labels: if kind == Kind::Enum { vec![(7, "open".into())] } else { Vec::new() },
        }
    }

    fn columns() -> Vec<ColumnAccess> {
        vec![
            column(1, "id", "bigint", Kind::Int),
            column(2, "user_id", "uuid", Kind::Uuid),
            column(3, "tenant", "character varying(20)", Kind::Text),
            column(4, "published", "boolean", Kind::Bool),
            column(5, "status", "public.status", Kind::Enum),
            column(6, "odd", "text", Kind::Text),
            column(7, "price", "numeric", Kind::Numeric),
            column(8, "padded", "character(3)", Kind::Text),
            column(9, "own_domain", "public.own_text", Kind::Text),
            column(10, "small", "smallint", Kind::Int),
            column(11, "day", "date", Kind::Date),
            column(12, "name", "text", Kind::Text),
        ]
    }

    fn compile(condition: &str) -> Result<(Formula, Vec<Claim>), String> {
        let function = |name: &str, returns: &str, body: &str| Function {
            schema: "auth".into(),
            name: name.into(),
            returns: returns.into(),
            arguments: Vec::new(),
            has_defaults: false,
            volatility: 's',
            language: "sql".into(),
            body: Some(body.into()),
        };
        let functions = [
            function("uid", "uuid", "select current_setting('request.jwt.claims')::uuid"),
            function("jwt", "jsonb", "select current_setting('request.jwt.claims')::jsonb"),
            function("teams", "uuid[]", "select current_setting('request.jwt.claims')::uuid[]"),
        ];
        let columns = columns();
        let mut compiler = Compiler {
            columns: &columns,
            functions: &functions,
            nondeterministic: &[6],
            claims: Vec::new(),
        };
        let formula = compiler.compile(condition)?;
        Ok((formula, compiler.claims))
    }

    fn equality(attnum: i16, kind: Kind, comparison: Comparison, operand: Operand) -> Formula {
        Formula::Compare(Column { attnum, kind }, comparison, operand)
    }

    fn constant(key: &str) -> Operand {
        Operand::Constant(Some(key.as_bytes().into()))
    }

    #[test]
    fn the_usual_policies_become_formulas() {
        let own = equality(2, Kind::Uuid, Eq, Operand::Claim(0));
        for (condition, expected) in [
            ("(user_id = auth.uid())", own.clone()),
            ("(( SELECT auth.uid() AS uid) = user_id)", own.clone()),
            ("((user_id)::text = (auth.jwt() ->> 'sub'::text))", own.clone()),
            ("((tenant)::text = 'a'::text)", equality(3, Kind::Text, Eq, constant("a"))),
            ("(id <> 5)", equality(1, Kind::Int, Ne, constant("5"))),
            ("(id = '-5'::integer)", equality(1, Kind::Int, Eq, constant("-5"))),
            ("(status = 'open'::public.status)", equality(5, Kind::Enum, Eq, constant("\u{0}7"))),
            (
                "(published OR (user_id = auth.uid()))",
                Formula::Or(vec![Formula::Flag(4), own.clone()]),
            ),
            ("((auth.jwt() ->> 'role'::text) = 'admin'::text)", Formula::Claim(0)),
            ("(true AND (user_id = auth.uid()))", own),
            ("(false OR true)", Formula::Claim(0)),
            (
                "(user_id = ANY (auth.teams()))",
                Formula::Any(Column { attnum: 2, kind: Kind::Uuid }, vec![Operand::Claim(0)]),
            ),
        ] {
            let compiled = compile(condition).map(|(formula, _)| formula);
            assert_eq!(compiled, Ok(expected), "{condition}");
        }
    }

    #[test]
    fn an_expression_over_claims_is_asked_for_once() {
        let condition = "((user_id = auth.uid()) OR (user_id = auth.uid()) OR (small = 1))";
        let (_, claims) = compile(condition).unwrap();

        assert_eq!(claims.len(), 1);
        assert_eq!(&*claims[0].sql, "auth.uid()");
        assert_eq!(claims[0].kind, Kind::Uuid);
    }

    #[test]
    fn what_may_be_equal_in_other_texts_is_left_to_postgres() {
        for condition in [
            "(price = 1.0)",
            "(odd = 'x'::text)",
            "(padded = 'x'::bpchar)",
            "((padded)::text = 'x'::text)",
            "((own_domain)::text = 'x'::text)",
            "((status)::text = 'open'::text)",
            "(tenant < 'x'::text)",
            "((price)::text = '1'::text)",
            "((id)::smallint = 5)",
            "(name = auth.uid())",
            "(user_id = auth.teams())",
            "((day)::text = '2026-01-01'::text)",
            "(lower(name) = 'x'::text)",
            "(id = small)",
            "(day = '01/02/2026'::date)",
            "(unheard_of = 1)",
            "(status = 'unheard of'::public.status)",
        ] {
            assert!(compile(condition).is_err(), "{condition}");
        }
    }
}
