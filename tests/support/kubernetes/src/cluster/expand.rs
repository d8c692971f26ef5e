//! `$(NAME)` in commands, arguments and environments, as the kubelet replaces it.
//!
//! `$$` is a dollar, so that `$$(NAME)` arrives as `$(NAME)`; a name that nobody
//! set, an open parenthesis without its end and a dollar before anything else
//! stay as they are.

/// A text with the values of `env` in it; of equal names the last counts.
pub(crate) fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')')) {
            match env.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => result.push_str(value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn as_the_kubelet_does() {
        let env: Vec<(String, String)> =
            [("A", "1"), ("B", "$(A)"), ("A", "2"), ("EMPTY", "")].map(|(a, b)| (a.into(), b.into())).into();
        for (text, becomes) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "2"),
            ("<$(A)$(A)>", "<22>"),
            ("[$(EMPTY)]", "[]"),
            // What was put in is not looked at again.
            ("$(B)", "$(A)"),
            // Escaped.
            ("$$", "$"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$2"),
            ("$$$$(A)", "$$(A)"),
            ("$$1 $$HOME $${x}", "$1 $HOME ${x}"),
            // Nobody's.
            ("$(NO)", "$(NO)"),
            ("$(NO)$(A)", "$(NO)2"),
            ("$()", "$()"),
            // No reference at all.
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("x$(", "x$("),
            ("$($(A)", "$($(A)"),
            ("ü$(A)$ü$$ü", "ü2$ü$ü"),
        ] {
            assert_eq!(expand(text, &env), becomes, "{text}");
        }
    }
}
