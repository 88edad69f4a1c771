"""A small invented OMOP source: rows of each table, with what is left for each reason, and free text."""

NOTE = "Anna Example, call her sister"
STAY = "stay-0815"
Rows = list[dict[str, str]]


def tables() -> dict[str, Rows]:
    """Three persons, one without anything but a year of birth."""
    return {
        "person": [
            {"person_id": "11", "year_of_birth": "1950", "month_of_birth": "2", "day_of_birth": "3"}
            | {"birth_datetime": "1950-02-03 04:30:00", "gender_concept_id": "8532"},
            {"person_id": "12", "year_of_birth": "1961", "month_of_birth": "5", "gender_concept_id": "0"}
            | {"gender_source_value": "m"},
            {"person_id": "13", "year_of_birth": "1970.0"},
        ],
        "death": [
            {"person_id": "12", "death_date": "2021-03-04"},
            {"person_id": "12", "death_date": "2021-03-02", "death_datetime": "2021-03-02 07:00:00"},
            {"person_id": "12", "death_date": "2021-03-04"},
            {"person_id": "13", "death_date": "soon"},
        ],
        "visit_occurrence": [
            {"person_id": "11", "visit_concept_id": "9201", "visit_source_value": STAY}
            | {"visit_start_datetime": "2020-01-01 08:00:00", "visit_end_date": "2020-01-05"},
            {"person_id": "11", "visit_concept_id": "0", "visit_source_value": STAY, "visit_start_date": "2020-01-09"},
        ],
        "condition_occurrence": [
            {"person_id": "11", "condition_concept_id": "254637007", "condition_start_date": "2020-01-02"}
            | {"condition_source_value": "C34.9", "condition_source_concept_id": "45"},
            {"person_id": "11", "condition_concept_id": "0", "condition_start_date": "2020-01-02"}
            | {"condition_source_value": "C34.9", "condition_source_concept_id": "45"},
            {"person_id": "11", "condition_concept_id": "", "condition_start_date": "20200103"}
            | {"condition_source_value": "X1"},
            {"person_id": "99", "condition_concept_id": "254637007", "condition_start_date": "2020-01-02"},
            {"person_id": "11", "condition_concept_id": "254637007", "condition_start_date": "2020-02-31"},
            {"person_id": "11", "condition_concept_id": "0", "condition_start_date": "2020-01-02"},
        ],
        "drug_exposure": [
            {"person_id": "12.0", "drug_concept_id": "777", "drug_exposure_start_date": "2020-03-01"}
            | {"drug_exposure_start_datetime": "yesterday"},
        ],
        "measurement": [
            _measured(value_as_number="4.5", unit_concept_id="8840", unit_source_value="mg/100mL", range_low="11.7"),
            _measured(value_as_number="5", operator_concept_id="4171756", unit_source_value="g/l"),
            _measured(value_source_value="<5"),
            _measured(value_source_value=">= 10", range_low="2", range_high="9.5"),
            _measured(value_source_value="1,5", range_low="1.5", range_high="1.5"),
            _measured(value_as_number="nan", value_source_value="abc"),
            _measured(value_as_concept_id="9191"),
            _measured(value_source_value="Negative (qualifier value)"),
            _measured(value_source_value=NOTE),
            _measured(value_as_number="1e60"),
        ],
        "observation": [
            {"person_id": "11", "observation_concept_id": "3000963", "observation_date": "2020-01-02"}
            | {"value_as_string": NOTE},
        ],
        "episode": [
            {"person_id": "11", "episode_concept_id": "32533", "episode_object_concept_id": "254637007"}
            | {"episode_start_date": "2020-01-02"},
        ],
        "note": [{"note_id": "1", "person_id": "11", "note_text": NOTE}],
        "concept": [
            _concept("9201", "Inpatient Visit", "Visit", "IP"),
            _concept("254637007", "Lung cancer", "SNOMED", "254637007"),
            _concept("45", "Neoplasm of lung", "ICD10", "C34.9"),
            _concept("3000963", "Hemoglobin", "LOINC", "718-7"),
            _concept("8840", "milligram per deciliter", "UCUM", "mg/dL"),
            _concept("9191", "Positive", "SNOMED", "10828004"),
        ],
    }


def _measured(**values: str) -> dict[str, str]:
    return {"person_id": "11", "measurement_concept_id": "3000963", "measurement_date": "2020-01-02"} | values


def _concept(number: str, name: str, vocabulary: str, code: str) -> dict[str, str]:
    return {"concept_id": number, "concept_name": name, "vocabulary_id": vocabulary, "concept_code": code}
