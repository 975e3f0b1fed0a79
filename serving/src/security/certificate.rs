//! The names of a client's certificate, which the TLS library has verified against the clients' authority before.

use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The object identifier 2.5.4.3, as a common name bears it.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The tags of DER that a name consists of, and of the texts that a common name may be.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0C;
const PRINTABLE_STRING: u8 = 0x13;

/// `dns:` and `uri:` of the subject's alternative names, then `cn:` of its common names; empty for what cannot be read.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(read) = EndEntityCert::try_from(certificate) else {
        tracing::warn!("a client's certificate cannot be read");
        return Vec::new();
    };
    let hosts = read.valid_dns_names().map(|name| format!("dns:{name}"));
    let places = read.valid_uri_names().map(|name| format!("uri:{name}"));
    let common = common_names(read.subject()).into_iter().map(|name| format!("cn:{name}"));
    hosts.chain(places).chain(common).collect()
}

/// The common names of a subject: sets of pairs of an identifier and a text, RFC 5280, section 4.1.2.4.
fn common_names(mut subject: &[u8]) -> Vec<&str> {
    let mut names = Vec::new();
    while let Some((SET, mut set)) = take(&mut subject) {
        while let Some((SEQUENCE, mut pair)) = take(&mut set) {
            let kind = take(&mut pair);
            let value = take(&mut pair);
            if let (Some((OBJECT_IDENTIFIER, kind)), Some((UTF8_STRING | PRINTABLE_STRING, text))) = (kind, value)
                && kind == COMMON_NAME
            {
                names.extend(std::str::from_utf8(text));
            }
        }
    }
    names
}

/// The next tag and its contents; `None` at the end, and for lengths that go beyond it or need more than two bytes.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (length, header) = match **bytes {
        [_, length @ 0..=0x7F, ..] => (usize::from(length), 2),
        [_, 0x81, length, ..] => (usize::from(length), 3),
        [_, 0x82, high, low, ..] => (usize::from(high) << 8 | usize::from(low), 4),
        _ => return None,
    };
    let tag = bytes[0];
    let contents = bytes.get(header..header + length)?;
    *bytes = &bytes[header + length..];
    Some((tag, contents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names_are_found_among_others_and_damage_is_no_name() {
        let subject: Vec<u8> = [
            // C = NL, then CN = ann.
            &[0x31, 0x0B, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, b'N', b'L'][..],
            &[0x31, 0x0C, 0x30, 0x0A, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0C, 0x03, b'a', b'n', b'n'][..],
        ]
        .concat();
        assert_eq!(common_names(&subject), ["ann"]);
        for end in 0..subject.len() {
            assert!(common_names(&subject[..end]).is_empty(), "cut at {end}");
        }
        assert!(common_names(&[0x31, 0x82, 0xFF, 0xFF, 0x30]).is_empty());
    }
}
