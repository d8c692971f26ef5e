//! From a row to JSON, through the caller's mask. The mask is a bit per
//! field, computed once per type and rank, so that a field which is not to be
//! seen costs one test and a `serde_json::Value` is never built.

use serde::Serialize;

use crate::db::Column;

/// What is added to a row's JSON beside its columns.
#[derive(Debug, Default, Clone)]
pub struct Extra(Vec<(&'static str, serde_json::Value)>, bool);

impl Extra {
    /// Adds a member. Names must not be those of fields.
    pub fn set(&mut self, name: &'static str, value: impl Into<serde_json::Value>) {
        self.0.push((name, value.into()));
    }

    /// Adds a member that is shown in this one answer: the answer is not kept
    /// for who sends the request again.
    pub fn set_secret(&mut self, name: &'static str, value: impl Into<serde_json::Value>) {
        self.set(name, value);
        self.1 = true;
    }

    /// Whether it has a member of that kind.
    pub(crate) fn is_secret(&self) -> bool {
        self.1
    }

    pub(crate) fn members(&self) -> &[(&'static str, serde_json::Value)] {
        &self.0
    }
}

/// A JSON object being written.
pub struct JsonObject<'a> {
    out: &'a mut Vec<u8>,
    mask: u64,
    first: bool,
}

impl<'a> JsonObject<'a> {
    /// Opens an object that shows the fields of `mask`.
    pub(crate) fn open(out: &'a mut Vec<u8>, mask: u64) -> Self {
        out.push(b'{');
        Self { out, mask, first: true }
    }

    /// Writes the next field, if it may be seen. Called once for every field,
    /// in the order of the metadata.
    pub fn field<T: Column>(&mut self, name: &'static str, value: &T) {
        self.field_with(name, |out| value.json(out));
    }

    /// As [`JsonObject::field`], for a value that has no Rust type.
    pub(crate) fn field_with(
        &mut self,
        name: &'static str,
        value: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>,
    ) {
        let visible = self.mask & 1 == 1;
        self.mask >>= 1;
        if visible {
            self.write(name, value);
        }
    }

    /// Writes a member whatever the mask.
    pub(crate) fn member<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        self.write(name, |out| serde_json::to_writer(out, value));
    }

    fn write(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        self.out.push(b'"');
        // Field names are identifiers: nothing in them needs escaping.
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        let start = self.out.len();
        if value(self.out).is_err() {
            // Only maps with keys that are no text fail; the answer stays JSON.
            self.out.truncate(start);
            self.out.extend_from_slice(b"null");
        }
    }

    /// Writes a member's name only; its value is the caller's to write.
    pub(crate) fn raw(self, name: &str) {
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Goes on with an object after a value that was written past it.
    pub(crate) fn resume(out: &'a mut Vec<u8>) -> Self {
        Self { out, mask: 0, first: false }
    }

    pub(crate) fn close(self) {
        self.out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_hides_fields() {
        let mut out = Vec::new();
        let mut object = JsonObject::open(&mut out, 0b101);
        object.field("a", &1_i64);
        object.field("secret", &"x".to_owned());
        object.field("c", &"y\"".to_owned());
        object.member("extra", &true);
        object.close();
        assert_eq!(String::from_utf8(out).unwrap(), r#"{"a":1,"c":"y\"","extra":true}"#);
    }
}
