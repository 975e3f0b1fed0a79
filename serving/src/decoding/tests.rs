//! Which messages expand, and that they are refused before they do.

use std::collections::HashMap;

use prost::Message;
use springhouse_featurestore::ErrorKind;

use super::*;
use crate::generated::inference::infer_parameter::ParameterChoice;
use crate::generated::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::generated::inference::{InferParameter, InferTensorContents, ModelInferRequest};

/// Walks through a message in pieces of so many bytes.
fn walked(message: &[u8], most: u64, piece: usize) -> Result<u64> {
    let mut walk = Walk::new(ModelInferRequest::SHAPE, message.len() as u64, most);
    message.chunks(piece).try_for_each(|part| walk.take(part))?;
    Ok(walk.taken)
}

/// Walks through it as it lies there, and in pieces: both find the same.
fn walked_both_ways(message: &[u8], most: u64, piece: usize) -> Result<u64> {
    let whole = walk_whole(ModelInferRequest::SHAPE, message, most);
    match (whole, walked(message, most, piece)) {
        (Ok(whole), in_pieces) => {
            assert_eq!(in_pieces.expect("the same"), whole);
            Ok(whole)
        }
        // What is cut off within a field at its end is for those to find who wait for the rest.
        (Err(error), Ok(_)) => {
            assert!(error.to_string().contains("ends within a field"), "{error}");
            Err(error)
        }
        (Err(error), Err(in_pieces)) => {
            assert_eq!(error.kind(), in_pieces.kind());
            Err(error)
        }
    }
}

/// A request with a bit of everything.
fn request() -> ModelInferRequest {
    let text = InferParameter { parameter_choice: Some(ParameterChoice::StringParam("x".repeat(300))) };
    let contents = InferTensorContents {
        int64_contents: vec![0, -1, i64::MAX],
        fp64_contents: vec![0.5; 40],
        bytes_contents: vec!["ann".into(), String::new().into(), "x".repeat(200).into()],
        ..InferTensorContents::default()
    };
    ModelInferRequest {
        model_name: "fraud".to_owned(),
        parameters: HashMap::from([("a".to_owned(), text)]),
        inputs: vec![
            InferInputTensor {
                name: "one".to_owned(),
                shape: vec![3, 1],
                contents: Some(contents),
                ..Default::default()
            },
            InferInputTensor::default(),
        ],
        outputs: vec![InferRequestedOutputTensor::default()],
        raw_input_contents: vec![vec![0x0A; 1000].into()],
        ..ModelInferRequest::default()
    }
}

#[test]
fn a_walk_takes_the_same_however_a_message_is_cut() {
    let message = request().encode_to_vec();
    let whole = walked_both_ways(&message, u64::MAX, message.len()).expect("well formed");
    assert!(whole > 2 * size_of::<InferInputTensor>() as u64, "{whole}");
    for piece in 1..40 {
        assert_eq!(walked(&message, u64::MAX, piece).expect("well formed"), whole, "pieces of {piece}");
    }
    walked_both_ways(&message, whole, 7).expect("just so much");
    let error = walked_both_ways(&message, whole - 1, 7).expect_err("one too many");
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("fewer rows"), "{error}");
}

#[test]
fn what_expands_most_is_refused_within_the_bytes_that_a_request_may_have() {
    // A repeated message without contents: two bytes of it are hundreds in memory.
    let inputs = ModelInferRequest { inputs: vec![InferInputTensor::default(); 1 << 20], ..Default::default() };
    let texts = InferTensorContents { bytes_contents: vec![Vec::new().into(); 4 << 20], ..Default::default() };
    let texts = InferInputTensor { contents: Some(texts), ..Default::default() };
    let numbers = InferTensorContents { int64_contents: vec![0; 12 << 20], ..Default::default() };
    let numbers = InferInputTensor { contents: Some(numbers), ..Default::default() };
    let raw = ModelInferRequest { raw_input_contents: vec![Vec::new().into(); 4 << 20], ..Default::default() };
    let parameters: HashMap<String, InferParameter> =
        (0..1 << 20).map(|number: u32| (number.to_string(), InferParameter::default())).collect();
    let of = |input| ModelInferRequest { inputs: vec![input], ..Default::default() };
    let cases = [
        ("inputs", inputs),
        ("texts", of(texts)),
        ("numbers", of(numbers)),
        ("raw contents", raw),
        ("parameters", ModelInferRequest { parameters, ..Default::default() }),
    ];
    for (what, request) in cases {
        let message = request.encode_to_vec();
        drop(request);
        assert!(message.len() <= 16 << 20, "{what}: {} bytes are refused anyway", message.len());
        let error = walked_both_ways(&message, 64 << 20, 16 << 10).expect_err(what);
        assert!(error.to_string().contains("too much memory"), "{what}: {error}");
    }
}

#[test]
fn what_people_send_is_taken() {
    // 4,096 rows of 500 numbers, raw and typed.
    let rows = 4096;
    let raw = ModelInferRequest {
        inputs: vec![InferInputTensor { name: "amount".to_owned(), shape: vec![rows], ..Default::default() }; 500],
        raw_input_contents: vec![vec![7; 4 * 4096].into(); 500],
        ..Default::default()
    };
    let contents = InferTensorContents { int64_contents: vec![5; 4096], ..Default::default() };
    let typed = InferInputTensor { shape: vec![rows], contents: Some(contents), ..Default::default() };
    let typed = ModelInferRequest { inputs: vec![typed; 500], ..Default::default() };
    for request in [raw, typed, request()] {
        walked_both_ways(&request.encode_to_vec(), 64 << 20, 16 << 10).expect("within the bounds");
    }
}

#[test]
fn what_is_malformed_is_refused_and_never_walked_past_its_end() {
    let nested = |inside: &[u8]| {
        let length = u8::try_from(inside.len()).expect("short");
        [&[0x2A, length], inside].concat()
    };
    for (message, what) in [
        (vec![0x0A, 0x05, b'x'], "a text that is longer than its message"),
        (nested(&[0x0A, 0x05, b'x']), "the same in an input"),
        (nested(&[0x80]), "a tag that is cut off"),
        (nested(&[0x18]), "a number that is not there"),
        (vec![0x0B, 0x0C], "a group"),
        (vec![0xFF; 11], "a number of eleven bytes"),
        (vec![0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], "a length of 2^64 - 1"),
    ] {
        for piece in [1, 2, 64] {
            let error = walked_both_ways(&message, u64::MAX, piece).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{what}");
        }
    }
    let message = request().encode_to_vec();
    for place in 0..message.len() {
        let mut damaged = message.clone();
        damaged[place] ^= 0x5A;
        // Refused or not: it ends, and what it lets past takes no more than it says.
        drop(walked_both_ways(&damaged, 1 << 20, 13));
        drop(walked_both_ways(&message[..place], 1 << 20, 5));
    }
}
