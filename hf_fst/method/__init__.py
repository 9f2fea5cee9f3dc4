"""The paper, ground floor: rules, the look-ahead they are written in, the teacher, objectives, losses."""
