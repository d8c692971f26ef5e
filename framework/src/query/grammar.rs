//! The grammar of `filter=`: `field.op(a, 'b, c', …)`. Pure text: what the
//! words mean is [`super::filter`]'s to say.

/// One expression, taken apart.
#[derive(Debug, PartialEq)]
pub(super) struct Expression<'a> {
    /// The field, or a way to one over references: `template.name`.
    pub(super) path: &'a str,
    /// The operator's name.
    pub(super) op: &'a str,
    /// Its arguments, without quotes and escapes.
    pub(super) args: Vec<String>,
}

/// Reads an expression.
///
/// # Errors
/// What is wrong, for the client.
pub(super) fn parse(text: &str) -> Result<Expression<'_>, String> {
    let shape = || format!("{text:?} is not like field.op(value)");
    let (head, rest) = text.trim().split_once('(').ok_or_else(shape)?;
    let (path, op) = head.rsplit_once('.').ok_or_else(shape)?;
    if path.is_empty() || op.is_empty() {
        return Err(shape());
    }
    Ok(Expression { path, op, args: arguments(rest).map_err(|wrong| format!("{text:?}: {wrong}"))? })
}

/// Reads `a, 'b', …)` to its end.
fn arguments(text: &str) -> Result<Vec<String>, &'static str> {
    let mut args = Vec::new();
    let mut rest = text.trim_start();
    if let Some(after) = rest.strip_prefix(')') {
        return end(after).map(|()| args);
    }
    loop {
        let (arg, after) = argument(rest)?;
        args.push(arg);
        let after = after.trim_start();
        if let Some(next) = after.strip_prefix(',') {
            rest = next.trim_start();
        } else if let Some(after) = after.strip_prefix(')') {
            return end(after).map(|()| args);
        } else {
            return Err("a ) is missing at its end");
        }
    }
}

fn end(rest: &str) -> Result<(), &'static str> {
    if rest.is_empty() { Ok(()) } else { Err("something stands after the )") }
}

/// One argument and what follows it.
fn argument(text: &str) -> Result<(String, &str), &'static str> {
    let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
        let at = text.find([',', ')', '(']).unwrap_or(text.len());
        let (bare, rest) = text.split_at(at);
        let bare = bare.trim_end();
        return match () {
            () if rest.starts_with('(') => Err("a text with ( must stand in quotes"),
            () if bare.is_empty() => Err("an argument is missing; an empty text is ''"),
            () => Ok((bare.to_owned(), rest)),
        };
    };
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next().ok_or("the quote is not closed")?.1),
            c if c == quote => return Ok((value, &text[at + c.len_utf8()..])),
            c => value.push(c),
        }
    }
    Err("the quote is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Result<Vec<String>, String> {
        parse(text).map(|it| it.args)
    }

    #[test]
    fn arguments_may_be_bare_or_quoted() {
        let it = parse("template.name.in(a, b c ,'d, (e)',\"f\\\"'\\\\\")").unwrap();
        assert_eq!((it.path, it.op), ("template.name", "in"));
        assert_eq!(it.args, ["a", "b c", "d, (e)", "f\"'\\"]);
        assert_eq!(args("a.isnull()").unwrap(), [""; 0]);
        assert_eq!(args("a.isnull( )").unwrap(), [""; 0]);
        assert_eq!(args("a.eq('')").unwrap(), [""]);
        assert_eq!(args("a.eq(O'Brien)").unwrap(), ["O'Brien"]);
        assert_eq!(args("a.eq( ' x ' )").unwrap(), [" x "]);
        assert_eq!(args("a.eq('ünï\\'c')").unwrap(), ["ünï'c"]);
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for bad in [
            "",
            "a",
            "a.eq",
            "a.eq(",
            "a.eq(x",
            "eq(x)",
            ".eq(x)",
            "a.(x)",
            "a.eq(x))",
            "a.eq(x) b",
            "a.eq(x,)",
            "a.eq(,x)",
            "a.eq('x)",
            "a.eq('x\\",
            "a.eq('x'y)",
            "a.eq(x(y))",
            "(",
            "a.eq\u{0}",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
