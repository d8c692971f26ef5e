-- A record's id carries its time. The indexes stay: MySQL has none of a part of a table.
UPDATE ops_log SET id = CONCAT(LPAD(LOWER(HEX(at DIV 1000 >> 16)), 8, '0'), '-', LPAD(LOWER(HEX(at DIV 1000 & 65535)), 4, '0'), '-7',
    CASE WHEN id LIKE '________-____-____-____-____________' THEN SUBSTR(id, 16) ELSE CONCAT('000-8000-', LPAD(LOWER(HEX(seq)), 12, '0')) END)
    WHERE obj_type <> 'task';
