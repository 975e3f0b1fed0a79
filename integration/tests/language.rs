//! The language: what is printed reads back as the same statement, and printing it again changes nothing.

use springhouse_sql::diagnostic::SourceFile;
use springhouse_sql::parse::{Statement, parse};
use springhouse_sql::print::print;

use crate::seeded::Seeded;

fn read(text: &str) -> Vec<Statement> {
    let parsed = parse(&SourceFile { name: "t.sql".to_owned(), text: text.to_owned() });
    assert!(parsed.faults.is_empty(), "{text}\n{:?}", parsed.faults);
    parsed.statements
}

fn name(random: &mut Seeded) -> String {
    random.pick(&["a", "user_id", "\"Odd Name\"", "\"select\"", "view7", "\"quo\"\"te\""]).to_owned()
}

fn span(random: &mut Seeded) -> String {
    format!("'{} {}'", 1 + random.below(90), random.pick(&["seconds", "minute", "hours", "days", "week", "ms"]))
}

fn query(random: &mut Seeded) -> String {
    random
        .pick(&[
            "SELECT a, b AS c FROM t WHERE a > 1 AND b IS NOT NULL",
            "select a, avg(b) over (partition by a order by t range between interval '2 hours' preceding and current row) m from s",
            "WITH x AS (SELECT 1 AS one) SELECT x.one, 'it''s' AS s FROM x JOIN y ON x.one = y.one",
            "SELECT CASE WHEN a THEN 1 ELSE 2 END AS k, CAST(b AS DOUBLE) AS d FROM t GROUP BY a, b",
        ])
        .to_owned()
}

fn types(random: &mut Seeded) -> &'static str {
    random.pick(&["VARCHAR", "int", "BIGINT", "double", "FLOAT", "BOOLEAN", "TIMESTAMP", "date", "SMALLINT UNSIGNED"])
}

fn optional(random: &mut Seeded, text: String) -> String {
    if random.below(2) == 0 { text } else { String::new() }
}

fn view(random: &mut Seeded) -> String {
    let mut clauses = vec![
        format!("ENTITY {}", name(random)),
        format!("REFRESH EVERY {}", span(random)),
        {
            let clause = format!("TTL {}", span(random));
            optional(random, clause)
        },
        {
            let clause = format!("LOOKBACK {}", span(random));
            optional(random, clause)
        },
        {
            let clause = format!("EVENT TIME {}", name(random));
            optional(random, clause)
        },
        {
            let lengths = ["2 hours", "24h", "7 days", "1 week", "90s", "1 minute"];
            let clause = format!(
                "WINDOWS ('{}', '{}' STEP {}) STEP {}",
                random.pick(&lengths),
                random.pick(&lengths),
                span(random),
                span(random)
            );
            optional(random, clause)
        },
    ];
    random.shuffle(&mut clauses);
    format!("CREATE FEATURE VIEW {} {} AS {}", name(random), clauses.join(" "), query(random))
}

fn source(random: &mut Seeded) -> String {
    let distinct = {
        let clause = format!("DISTINCT ON ({}, b)", name(random));
        optional(random, clause)
    };
    let mut clauses = match random.below(3) {
        0 => vec!["STATIC".to_owned()],
        1 => vec![
            format!("EVENT TIME {} AT TIME ZONE 'America/New_York'", name(random)),
            format!("DELAY {}", span(random)),
            distinct,
        ],
        _ => {
            let lateness = format!("LATENESS {}", span(random));
            let zone = optional(random, "AT TIME ZONE 'Europe/Berlin'".to_owned());
            vec![
                format!("EVENT TIME {}", name(random)),
                format!("AVAILABLE AT {} {zone}", name(random)),
                optional(random, lateness),
                distinct,
            ]
        }
    };
    random.shuffle(&mut clauses);
    let events = if random.below(3) == 0 { pushed(random) } else { query(random) };
    format!("CREATE SOURCE {} {} AS {events}", name(random), clauses.join(" "))
}

fn pushed(random: &mut Seeded) -> String {
    format!("PUSHED ({} {}, b {})", name(random), types(random), types(random))
}

fn contract(random: &mut Seeded) -> String {
    let rule = |random: &mut Seeded| {
        let age = {
            let clause = format!("MAX AGE {}", span(random));
            optional(random, clause)
        };
        let missing = {
            let clause = "ON MISSING DEFAULT".to_owned();
            optional(random, clause)
        };
        format!("{} {missing} FRESH WITHIN {} {age} ON STALE serve", name(random), span(random))
    };
    let mut clauses = vec![
        "TIER interactive".to_owned(),
        format!("REQUEST ({} {} NOT NULL, b {})", name(random), types(random), types(random)),
        {
            let clause = format!("FEATURES ({}, {})", rule(random), rule(random));
            optional(random, clause)
        },
        format!("INPUTS (b, coalesce(v.x, 0) + 1 AS {}, v.y)", name(random)),
        "OUTPUT (score FLOAT)".to_owned(),
        {
            let clause = format!("LATENCY {} AT 0.99", span(random));
            optional(random, clause)
        },
        {
            let clause = format!("AVAILABILITY 0.999 OVER {}", span(random));
            optional(random, clause)
        },
    ];
    random.shuffle(&mut clauses);
    format!("CREATE CONTRACT {} {}", name(random), clauses.join("\n"))
}

fn spine(random: &mut Seeded) -> String {
    let zone = optional(random, "AT TIME ZONE 'Europe/Berlin'".to_owned());
    let time = format!("EVENT TIME {} {zone}", name(random));
    format!("CREATE SPINE {} {} AS {}", name(random), optional(random, time), query(random))
}

fn statement(random: &mut Seeded) -> String {
    match random.below(7) {
        0 => view(random),
        1 => source(random),
        2 => contract(random),
        3 => format!("CREATE ENTITY {} KEY ({} {}, b {})", name(random), name(random), types(random), types(random)),
        4 => {
            let kinds = ["TABLE", "SOURCE", "ENTITY", "FEATURE VIEW", "CONTRACT", "SPINE"];
            format!("DROP {} {}", random.pick(&kinds), name(random))
        }
        5 => spine(random),
        _ => format!(
            "CREATE EXTERNAL TABLE t{} STORED AS CSV LOCATION 'it''s/here.csv' OPTIONS ('format.has_header' 'true')",
            random.below(9)
        ),
    }
}

#[test]
fn a_pushed_view_is_a_source_and_a_view_over_it() {
    let read = read(
        "create feature view risk entity plane event time scored_at available at known_at lateness '1 day' ttl '1 week'
         as pushed (tailnum varchar, score double, scored_at timestamp, known_at timestamp)",
    );
    let printed: Vec<String> = read.iter().map(print).collect();
    assert_eq!(
        printed,
        [
            "CREATE SOURCE risk EVENT TIME scored_at AVAILABLE AT known_at LATENESS '1 day'\n  \
             AS PUSHED (tailnum VARCHAR, score DOUBLE, scored_at TIMESTAMP, known_at TIMESTAMP)",
            "CREATE FEATURE VIEW risk\n  ENTITY plane\n  REFRESH EVERY '1 minute'\n  TTL '7 days'\n  \
             AS SELECT tailnum, score, scored_at, known_at FROM risk",
        ]
    );
}

#[test]
fn a_source_that_tells_its_events_apart_is_printed_so_and_others_as_before() {
    let text = |distinct: &str, rest: &str| {
        format!("create source paid {distinct} event time paid_at {rest} as select * from t")
    };
    let printed = |text: &str| print(&read(text)[0]);
    assert_eq!(printed(&text("", "")), "CREATE SOURCE paid EVENT TIME paid_at\n  AS SELECT * FROM t");
    let expected =
        "CREATE SOURCE paid EVENT TIME paid_at DELAY '1 minute' DISTINCT ON (id, \"Shop\")\n  AS SELECT * FROM t";
    assert_eq!(printed(&text("distinct on (id, \"Shop\")", "delay '1 minute'")), expected);
    assert_eq!(printed(&text("delay '1 minute'", "DISTINCT ON (ID, \"Shop\")")), expected);
}

#[test]
fn what_is_printed_reads_back() {
    let mut random = Seeded::new(7);
    for _ in 0..3000 {
        let text = statement(&mut random);
        let read_once = read(&text);
        let printed = print(&read_once[0]);
        let read_again = read(&printed);
        assert_eq!(read_once, read_again, "{text}\n{printed}");
        assert_eq!(print(&read_again[0]), printed, "{text}");
    }
}
