//! Which language a client wants.

/// A language that messages are written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lang {
    /// English, as they stand in the sources.
    #[default]
    English,
    /// Chinese, in simplified characters.
    Chinese,
}

impl Lang {
    /// The tag, for `Content-Language`.
    #[must_use]
    pub fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh-CN",
        }
    }

    /// The one that an `Accept-Language` likes best; English if it likes none
    /// of ours. The first of equals wins.
    #[must_use]
    pub fn accepted(header: &str) -> Self {
        let mut best = (0.0, Self::English);
        for range in header.split(',') {
            let mut parts = range.split(';');
            let tag = parts.next().unwrap_or_default().trim();
            let primary = tag.split('-').next().unwrap_or_default();
            let lang = match primary.to_ascii_lowercase().as_str() {
                "en" | "*" => Self::English,
                "zh" => Self::Chinese,
                _ => continue,
            };
            let quality = parts.find_map(|it| it.trim().strip_prefix("q=")?.trim().parse::<f32>().ok());
            let quality = quality.unwrap_or(1.0);
            if quality > best.0 {
                best = (quality, lang);
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::Lang::{self, Chinese, English};

    #[test]
    fn qualities_decide() {
        for (header, lang) in [
            ("", English),
            ("zh", Chinese),
            ("zh-CN,zh;q=0.9,en;q=0.8", Chinese),
            ("ZH-Hans-CN", Chinese),
            ("en;q=0.5, zh;q=0.4", English),
            ("fr, de;q=0.9, zh;q=0.1", Chinese),
            ("fr", English),
            ("zh;q=0", English),
            ("*, zh;q=0.5", English),
            ("zh;q=nonsense;;,,", Chinese),
        ] {
            assert_eq!(Lang::accepted(header), lang, "{header:?}");
        }
    }
}
