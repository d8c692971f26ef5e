//! Bodies in Kubernetes' protobuf, as `kubectl create` sends them: the few kinds
//! that it makes so. Answers are JSON, which it takes as well.
//!
//! An envelope (`k8s` and a zero, then `runtime.Unknown`) names the kind of the
//! object within. Field numbers are those of Kubernetes' `generated.proto`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// Its media type.
pub(crate) const TYPE: &str = "application/vnd.kubernetes.protobuf";

/// A field: its number, its name in JSON, and what it is.
type Field = (u64, &'static str, Is);

#[derive(Clone, Copy)]
enum Is {
    Text,
    Flag,
    /// Texts by their names.
    Texts,
    /// Bytes by their names.
    Blobs,
    Message(&'static [Field]),
}

const META: Is = Is::Message(&[
    (1, "name", Is::Text),
    (2, "generateName", Is::Text),
    (3, "namespace", Is::Text),
    (11, "labels", Is::Texts),
    (12, "annotations", Is::Texts),
]);

const ACCESS: Is = Is::Message(&[
    (
        1,
        "resourceAttributes",
        Is::Message(&[
            (1, "namespace", Is::Text),
            (2, "verb", Is::Text),
            (3, "group", Is::Text),
            (4, "version", Is::Text),
            (5, "resource", Is::Text),
            (6, "subresource", Is::Text),
            (7, "name", Is::Text),
        ]),
    ),
    (2, "nonResourceAttributes", Is::Message(&[(1, "path", Is::Text), (2, "verb", Is::Text)])),
]);

fn fields(kind: &str) -> Option<&'static [Field]> {
    Some(match kind {
        "Namespace" | "ServiceAccount" => &[(1, "metadata", META)],
        "Secret" => &[
            (1, "metadata", META),
            (2, "data", Is::Blobs),
            (3, "type", Is::Text),
            (4, "stringData", Is::Texts),
            (5, "immutable", Is::Flag),
        ],
        "ConfigMap" => &[(1, "metadata", META), (2, "data", Is::Texts), (3, "binaryData", Is::Blobs)],
        "SelfSubjectAccessReview" => &[(1, "metadata", META), (2, "spec", ACCESS)],
        _ => return None,
    })
}

/// The object in a body; none if it is none of those kinds.
pub(crate) fn read(body: &[u8]) -> Option<Value> {
    let envelope = message(
        body.strip_prefix(b"k8s\0")?,
        &[(1, "type", Is::Message(&[(1, "apiVersion", Is::Text), (2, "kind", Is::Text)]))],
    )?;
    let raw = parts(body.get(4..)?)?.into_iter().find(|(number, _)| *number == 2)?.1;
    let kind = envelope["type"]["kind"].as_str()?;
    let mut object = message(raw.bytes()?, fields(kind)?)?;
    object["kind"] = json!(kind);
    object["apiVersion"] = envelope["type"]["apiVersion"].clone();
    Some(object)
}

/// What stands on the wire for a field.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Number(_) => None,
        }
    }

    fn text(&self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

fn number(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(from: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (piece, rest) = from.split_at_checked(usize::try_from(count).ok()?)?;
    *from = rest;
    Some(piece)
}

fn parts(mut from: &[u8]) -> Option<Vec<(u64, Wire<'_>)>> {
    let mut parts = Vec::new();
    while !from.is_empty() {
        let tag = number(&mut from)?;
        let wire = match tag & 7 {
            0 => Wire::Number(number(&mut from)?),
            1 => Wire::Bytes(take(&mut from, 8)?),
            2 => {
                let length = number(&mut from)?;
                Wire::Bytes(take(&mut from, length)?)
            }
            5 => Wire::Bytes(take(&mut from, 4)?),
            _ => return None,
        };
        parts.push((tag >> 3, wire));
    }
    Some(parts)
}

/// A message as JSON. Empty texts are left out: protobuf has them for what was not given.
fn message(bytes: &[u8], fields: &[Field]) -> Option<Value> {
    let mut object = Map::new();
    for (number, wire) in parts(bytes)? {
        let Some((_, name, is)) = fields.iter().find(|it| it.0 == number) else { continue };
        match is {
            Is::Text => {
                let text = wire.text()?;
                if !text.is_empty() {
                    object.insert((*name).to_owned(), json!(text));
                }
            }
            Is::Flag => {
                object.insert((*name).to_owned(), json!(matches!(wire, Wire::Number(1))));
            }
            Is::Message(fields) => {
                object.insert((*name).to_owned(), message(wire.bytes()?, fields)?);
            }
            Is::Texts | Is::Blobs => {
                let entry = parts(wire.bytes()?)?;
                let of = |wanted: u64| entry.iter().find(|(number, _)| *number == wanted).map(|it| &it.1);
                let key = of(1).map_or(Some(String::new()), Wire::text)?;
                let value = match (is, of(2)) {
                    (_, None) => String::new(),
                    (Is::Blobs, Some(value)) => STANDARD.encode(value.bytes()?),
                    (_, Some(value)) => value.text()?,
                };
                let all = object.entry(*name).or_insert_with(|| json!({}));
                all[key] = json!(value);
            }
        }
    }
    Some(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut all = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        all.extend(bytes);
        all
    }

    fn body(kind: &str, object: &[u8]) -> Vec<u8> {
        let kind = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [b"k8s\0".to_vec(), field(1, &kind), field(2, object), field(3, b"")].concat()
    }

    #[test]
    fn what_kubectl_creates() {
        let meta = field(1, &[field(1, b"n"), field(2, b"")].concat());
        let entry = field(2, &[field(1, b"password"), field(2, &[0xff, 1])].concat());
        let read = read(&body("Secret", &[meta.clone(), entry, field(3, b"Opaque")].concat())).unwrap();
        let wanted = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "n"},
            "data": {"password": "/wE="}, "type": "Opaque"});
        assert_eq!(read, wanted);
        assert!(super::read(&body("Pod", &meta)).is_none());
        assert!(super::read(b"k8s\0\xff").is_none());
        assert!(super::read(b"{}").is_none());
    }
}
